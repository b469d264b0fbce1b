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
from langmerge_jax.files import write_json

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


def default() -> ml_collections.ConfigDict:
    """Returns the paper's set-up for sentiment in its five languages."""
    config = ml_collections.ConfigDict()

    # The frozen model: a directory in Hugging Face layout, or a hub name.
    config.base = "meta-llama/Llama-3.1-8B-Instruct"
    config.dtype = "bfloat16"
    # xla, blockwise, cudnn or splash; auto takes the fastest that runs on the devices.
    config.attention = "auto"
    config.languages = ("en", "de", "fr", "ja", "zh")
    # For the train door: one adapter on all languages together instead of one for each.
    config.combined = False

    config.task = ml_collections.ConfigDict()
    config.task.labels = ("positive", "neutral", "negative")
    config.task.template = (
        "Classify the sentiment of the text as positive, neutral or negative. "
        "Answer with one word.\n\nText: {text}"
    )
    config.task.max_length = 8196

    # Local files: a path with {language} and {split} (train, validation, test), one JSON object a
    # line. The hub: hf:<data set>.
    config.data = ml_collections.ConfigDict()
    config.data.path = "hf:clapAI/MultiLingualSentiment"
    config.data.text_field = "text"
    config.data.label_field = "label"
    config.data.language_field = "language"
    # Rows a language, drawn by seed; 0 takes all.
    config.data.rows = ml_collections.ConfigDict({"train": 5000, "validation": 500, "test": 500})
    config.data.seed = 0

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
    # One more row: the recipe and lambda that do best on validation. () leaves it out.
    config.merge.tune_lambda = ()
    config.merge.tune_recipes = ()

    config.updates = ml_collections.ConfigDict()
    # The recipe an update merges by; "" takes the one that tuning chose.
    config.updates.recipe = ""
    # Also retrain `combined`, to compare with: this is the cost that merging avoids.
    config.updates.combined = False
    # Updates that the experiment door plays through: "<language>=<new rows>" for one that is
    # trained already, "<language>" for one that joins.
    config.updates.plan = ()
    # Share of old rows for a second, warm update beside each cold one of the plan; 0 leaves it out.
    config.updates.warm_start = 0.0

    config.evaluate = ml_collections.ConfigDict()
    config.evaluate.batch_size = 32
    # Also fit a character n-gram classifier on the training rows, to stand beside the scores.
    config.evaluate.ngram_baseline = False
    # Also score the chosen recipe at parts of its rank, and folded into the base.
    config.evaluate.ranks = False
    # By how much a merge may score below `combined` and still be called on par with it.
    config.evaluate.margin = 0.01

    # The settings of a generated corpus and base model (configs/demo.py); empty for real ones.
    config.demo = ml_collections.ConfigDict()
    return config


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as plain JSON values."""
    return json.loads(config.to_json())


def claim_workdir(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Makes `workdir` this config's own: writes `config.json`, or checks the one that is there.

    Settings of merging, evaluation, updates and the machine may change between two runs; results
    know what they were made from. The others decide what the adapters are.

    Raises:
      InputError: if the workdir belongs to a run of other adapters, or is no directory.
    """
    path, wanted = workdir / "config.json", to_json(config)
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
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"workdir {workdir}: {error.strerror}; choose another") from error
    write_json(path, wanted)


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that decide what the adapters are."""
    kept = {key: value for key, value in settings.items() if key not in _FREE}
    return kept | {"train": decisive_of_train(kept.get("train", {}))}


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
