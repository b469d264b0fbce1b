"""Every setting of a run, with the paper's values (docs/paper.md) as defaults.

A config file under `configs/` starts from `default()` and changes what it needs. Paths may hold
the placeholder `{workdir}`.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from langmerge_jax.errors import InputError
from langmerge_jax.files import alone_in, write_json

PAPER_RECIPES = tuple(
    f"{method}@{density}"
    for density in ("1.0", "0.5")
    for method in ("ties", "ties_knots", "dare_ties", "dare_ties_knots")
)


# Sections that a workdir's config may change.
_FREE = (
    *("combined", "merge", "evaluate", "updates", "dollars_per_device_hour"),
    *("attention", "cpu_devices", "adapters_at_once", "mesh", "tensorboard"),
)
# Of the section `train`, what changes an adapter by no more than rounding.
_FREE_OF_TRAIN = ("remat", "accumulation", "checkpoint_steps")


# What differs between the paper's tasks: how they ask, and where their rows are.
_TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "sentiment": {
        "task": {
            "template": "Classify the sentiment of the text as positive, neutral or negative. "
            "Answer with one word.\n\nText: {text}",
            "labels": ("positive", "neutral", "negative"),
            "max_new_tokens": 16,
        },
        "data": {
            "path": "hf:clapAI/MultiLingualSentiment",
            "fields": {"id": "id", "text": "text", "target": "label"},
            "language_field": "language",
        },
    },
    "reasoning": {
        "task": {
            "template": "Answer the question with the letter of the right choice.\n\n"
            "Question: {text}\n{choices}",
            "labels": ("A", "B", "C", "D", "E"),
            "max_new_tokens": 16,
        },
        "data": {
            "path": "hf:yusuke1997/mCSQA",
            "fields": {
                "id": "id",
                "text": "question",
                "choices": "choices.text",
                "letters": "choices.label",
                "target": "answerKey",
            },
        },
    },
    "summarization": {
        "task": {
            "template": "Summarize the article in the language it is written in.\n\n{text}",
            "max_new_tokens": 256,
        },
        "data": {
            "path": "hf:esdurmus/wiki_lingua",
            "fields": {
                "id": "url",
                "text": "article.document",
                "target": "article.summary",
                # The English article is the same in every language.
                "group": "article.english_url|url",
            },
            "names": {
                "en": "english",
                "de": "german",
                "fr": "french",
                "ja": "japanese",
                "zh": "chinese",
                "es": "spanish",
            },
            # All rows are published as one split.
            "splits": {"train": "train", "validation": "train", "test": "train"},
            "rows": {"train": 3000},
        },
    },
    "themes": {
        "task": {
            "template": "Find the themes of the comments. Answer with JSON of the form "
            '{"themes": [{"theme": "...", "examples": ["..."]}]}. Examples are quoted from the '
            "comments word for word.\n\n{text}",
            "max_new_tokens": 1024,
        },
        "data": {
            # One's own: {"id": …, "comments": [text, …], "themes": [as in the prompt, …]} a line.
            "path": "{language}/{split}.jsonl",
            "fields": {"id": "id", "text": "comments", "target": "themes"},
        },
    },
}


def default(task: str = "sentiment") -> ml_collections.ConfigDict:
    """Returns the paper's set-up for one of its tasks in its five languages.

    Args:
      task: sentiment, reasoning, summarization or themes.
    """
    config = ml_collections.ConfigDict()

    # The frozen model: a directory in Hugging Face layout, or a hub name.
    config.base = "meta-llama/Llama-3.1-8B-Instruct"
    config.dtype = "bfloat16"
    # xla, blockwise, cudnn or splash; auto takes the fastest that runs on the devices.
    config.attention = "auto"
    config.languages = ("en", "de", "fr", "ja", "zh")
    # For the train door: one adapter on all languages together instead of one for each.
    config.combined = False

    # Several tasks in one experiment: {task: `section(task)`}; those below are then not used.
    config.tasks = ml_collections.ConfigDict()

    config.task = ml_collections.ConfigDict()
    config.task.name = task
    # Placeholders: {text}, and for reasoning {choices}.
    config.task.template = ""
    # {language: template} where one has another.
    config.task.templates = ml_collections.ConfigDict()
    # Of prompt and answer together, in tokens; longer texts are cut, answers never.
    config.task.max_length = 8196
    # Of a generated answer; so much room is left behind a text that is cut.
    config.task.max_new_tokens = 0
    # Sentiment, reasoning: what may be answered.
    config.task.labels = ()
    # {language: {label: words}} that the model is to answer with instead of the label.
    config.task.answers = ml_collections.ConfigDict()

    config.data = ml_collections.ConfigDict()
    # hf:<data set of the hub, or directory>[@<revision>], tfds:<data set>, or a local file
    # (.jsonl, .json, .csv, .tsv, .parquet) with the placeholders {language} and {split}; all files
    # that a path with * fits are one.
    config.data.path = ""
    # {part: column}, see langmerge_jax/data/fields.py.
    config.data.fields = ml_collections.ConfigDict()
    # Column by which rows of one language are told from others; "" if they lie apart.
    config.data.language_field = ""
    # {language: what the data set calls it} and {split: what it calls that}.
    config.data.names = ml_collections.ConfigDict()
    config.data.splits = ml_collections.ConfigDict()
    # How splits that the data set has as one are shared out, by the hash of a row or its article.
    # With a share for "instruct", a base that is trained here (config.demo) gets rows of its own.
    config.data.shares = ml_collections.ConfigDict({"train": 0.8, "validation": 0.1, "test": 0.1})
    # {value in the data: label} where the data has other labels.
    config.data.labels = ml_collections.ConfigDict()
    # Rows a language, drawn by seed; 0 takes all. `further` are for more data of a language.
    config.data.rows = ml_collections.ConfigDict(
        {"train": 5000, "validation": 500, "test": 500, "further": 5000}
    )
    config.data.seed = 0
    # Leave rows out that cannot be read, and say how many, instead of refusing them.
    config.data.skip_bad = False
    config.task.update(_TASKS[task]["task"])
    config.data.update(_TASKS[task]["data"])

    config.lora = ml_collections.ConfigDict()
    config.lora.rank = 64
    # The delta is multiplied with alpha / rank, or with rslora by alpha / sqrt(rank).
    config.lora.alpha = 64.0
    config.lora.rslora = False
    config.lora.dropout = 0.0
    # Names as in PEFT, or ("all-linear",), which is all of these.
    config.lora.targets = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )

    config.train = ml_collections.ConfigDict()
    config.train.epochs = 4
    config.train.batch_size = 8
    config.train.learning_rate = 2e-5
    config.train.warmup = 0.03
    config.train.b1 = 0.9
    config.train.b2 = 0.999
    config.train.eps = 1e-8
    config.train.weight_decay = 0.0
    config.train.max_grad_norm = 1.0
    # Sequence lengths a batch is padded to, four at most; each one used is compiled once.
    config.train.buckets = (128, 512, 2048, 8196)
    # Lay several examples of a batch out in one row of the longest bucket, kept apart by segments:
    # less padding where lengths differ much. Not with cuDNN's attention.
    config.train.packing = False
    # On the tokens of the "answers", or on "all".
    config.train.loss = "answers"
    # What the backward pass computes again: "layer" all but each layer's input, "products" all but
    # the products with the base's weights, "none" nothing, which is fastest and takes most memory.
    config.train.remat = "layer"
    # Parts, at least, that the batch of a step is cut into, whose gradients are added up; 0 takes
    # as few as fit the memory.
    config.train.accumulation = 0
    # Validate after each epoch and keep the factors that did "best" there, or take the "last".
    config.train.keep = "best"
    # A killed training goes on from its newest checkpoint and does at most so many steps again.
    config.train.checkpoint_steps = 200
    config.train.seed = 0
    # Epochs, learning rate or warm-up that a single adapter has of its own:
    # {"ja": {"epochs": 6, "learning_rate": 1e-5}}.
    config.train.own = ml_collections.ConfigDict()

    # Trainings write event files for TensorBoard: tensorboard --logdir <workdir>/training
    config.tensorboard = True

    # For the cost tables; 0 leaves dollars out.
    config.dollars_per_device_hour = 0.0

    # Run on the CPU, cut into this many devices in each process; 0 takes the accelerators that are
    # found.
    config.cpu_devices = 0
    # Individual adapters that are trained side by side, in one batch; the rest follow one another
    # in the same process, over the same base and compiled programs. 0 takes all: best where the
    # rows of one adapter are too few to fill the devices.
    config.adapters_at_once = 0
    # Devices along each axis; -1 takes all that are left.
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    config.merge = ml_collections.ConfigDict()
    config.merge.recipes = (*PAPER_RECIPES, "linear", "peft/linear")
    config.merge.seed = 0
    # {language: weight} by importance; those not named have 1. For TIES only ratios matter.
    config.merge.weights = ml_collections.ConfigDict()
    # {cluster: (language, …)} merged apart, each language answered by the merge of its cluster; or
    # how many clusters to find by shared vocabulary of the training texts.
    config.merge.clusters = ml_collections.ConfigDict()
    config.merge.find_clusters = 0
    # One more row: the recipe and lambda that do best on validation. () leaves it out.
    config.merge.tune_lambda = ()
    config.merge.tune_recipes = ()

    config.updates = ml_collections.ConfigDict()
    # The recipe an update merges by; "" takes the one that tuning chose.
    config.updates.recipe = ""
    # Also retrain `combined`, to compare with: this is the cost that merging avoids.
    config.updates.combined = False
    # Updates that the experiment door plays through: "<language>" for a language that joins, or
    # for data.rows.further more rows of one that is trained; "<language>=<path>" for other rows.
    config.updates.plan = ()
    # Share of old rows for a second, warm update beside each cold one of the plan; 0 leaves it out.
    config.updates.warm_start = 0.0

    config.evaluate = ml_collections.ConfigDict()
    config.evaluate.batch_size = 32
    # "choice" takes the likeliest of the task's answers, "generation" what the model writes;
    # "" the task's own: choice where there are labels.
    config.evaluate.mode = ""
    # Variants that share the batches; those of another rank, or folded, have batches of their own.
    config.evaluate.variants_at_once = 8
    # Summarization: encoder for BERTScore, a directory or hub name, and the layer whose states
    # are compared, 0 for the known one; "" leaves it out.
    config.evaluate.bertscore = ml_collections.ConfigDict(
        {"model": "FacebookAI/xlm-roberta-large", "layer": 0, "batch_size": 64}
    )
    # Themes: share of an example that has to stand in the input in one piece; 1 is all of it.
    config.evaluate.fuzzy = 1.0
    # Also score the commonest label, and a character n-gram classifier, of the training rows.
    config.evaluate.baselines = False
    # Also score the chosen recipe at parts of its rank, and folded into the base.
    config.evaluate.ranks = False
    # By how much a merge may score below `combined` and still be called on par with it.
    config.evaluate.margin = 0.01

    # The settings of a base model that is trained here, and of the corpus that is generated for it
    # (configs/demo.py); without one it reads the run's own rows (configs/realdata_sentiment.py).
    # Empty for a real base.
    config.demo = ml_collections.ConfigDict()
    return config


def section(task: str) -> dict[str, ml_collections.ConfigDict]:
    """Returns what belongs to one of several tasks of an experiment, for `config.tasks`."""
    config = default(task)
    return {"task": config.task, "data": config.data}


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as plain JSON values."""
    return json.loads(config.to_json())


def claim_workdir(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Makes `workdir` this config's own: writes `config.json`, or checks the one that is there.

    Settings of merging, evaluation, updates and the machine may change between two runs; results
    know what they were made from. The others decide what the adapters are.

    Several processes may claim one at the same time.

    Raises:
      InputError: if the workdir belongs to a run of other adapters, or is no directory.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"workdir {workdir}: {error.strerror}; choose another") from error
    with alone_in(workdir, waits=True):
        _claim(workdir, to_json(config))


def _claim(workdir: pathlib.Path, wanted: Mapping[str, Any]) -> None:
    path = workdir / "config.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); is {workdir} a workdir?") from error
        different = _first_difference(_decisive(found), _decisive(wanted))
        if different:
            key, old, new = different
            raise InputError(
                f"workdir {workdir} belongs to another config: there {key} is {old!r}, here "
                f"{new!r}; choose another --workdir, or remove it to start over"
            )
        if found == wanted:
            return
    write_json(path, wanted)


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that decide what the adapters are."""
    kept = {key: value for key, value in settings.items() if key not in _FREE}
    data = dict(kept.get("data", {}))
    rows = {key: value for key, value in data.get("rows", {}).items() if key != "further"}
    return kept | {
        "train": decisive_of_train(kept.get("train", {})),
        "data": data | {"rows": rows},
    }


def decisive_of_train(train: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of the section `train` that decide what the adapters are."""
    return {key: value for key, value in train.items() if key not in _FREE_OF_TRAIN}


def _first_difference(found: Any, wanted: Any, key: str = "") -> tuple[str, Any, Any] | None:
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return None if found == wanted else (key, found, wanted)
    for name in sorted(found.keys() | wanted.keys()):
        inner = f"{key}.{name}" if key else name
        if name not in found or name not in wanted:
            return inner, found.get(name, "missing"), wanted.get(name, "missing")
        different = _first_difference(found[name], wanted[name], inner)
        if different:
            return different
    return None
