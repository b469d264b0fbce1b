"""An experiment of any size as one for a laptop: a generated corpus, a tiny base, few rows."""

import ml_collections

from langmerge_jax.config import default
from langmerge_jax.errors import InputError

# Short, as the demo's base reads short texts; {choices} for reasoning.
_TEMPLATES = {
    "sentiment": "{text}\nSentiment?",
    "reasoning": "{text}\n{choices}\nAnswer?",
    "summarization": "{text}\nSummary?",
    "themes": "{text}\nThemes?",
}
# Tokens of prompt and answer together, of a generated answer, and of the batches' rows.
_LENGTHS = {
    "sentiment": (64, 8, (24, 40, 64)),
    "reasoning": (128, 8, (64, 128)),
    "summarization": (192, 64, (64, 128, 192)),
    "themes": (384, 192, (128, 256, 384)),
}
_FIELDS = {
    "sentiment": {"id": "id", "text": "text", "target": "label"},
    "reasoning": {
        "id": "id",
        "text": "question",
        "choices": "choices.text",
        "letters": "choices.label",
        "target": "answerKey",
    },
    "summarization": {"id": "id", "text": "document", "target": "summary", "group": "url"},
    "themes": {"id": "id", "text": "comments", "target": "themes"},
}
# Rows a language of the tasks but sentiment.
_ROWS = {"train": 1000, "update": 500, "validation": 100, "test": 200}


def sized(config: ml_collections.ConfigDict, size: str) -> ml_collections.ConfigDict:
    """Returns a config as it is, or for the size `demo` as `for_demo` makes it.

    Args:
      size: what stands behind the colon of --config.

    Raises:
      InputError: for another size.
    """
    if size not in ("", "demo"):
        raise InputError(f"{size!r} is no size; behind the colon stands demo, or nothing")
    return for_demo(config) if size else config


def for_demo(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Turns a config of any task into one of the demo's size, and returns it.

    What is compared stays: the recipes, clusters, weights and planned updates, which take the
    demo's rows. The base, the rows and the training become the demo's, see configs/demo.py.
    """
    config.base = "{workdir}/base"
    config.dtype = "float32"
    # Two CPU devices take half of each batch: most operations of so small a model use one core.
    config.cpu_devices = 2
    # The rows of one adapter fit a CPU's cache, those of five do not.
    config.adapters_at_once = 1
    for section in config.tasks.values() or [config]:
        _shrink(section.task, section.data)
    tasks = [section.task.name for section in config.tasks.values() or [config]]
    config.train.buckets = max((_LENGTHS[name][2] for name in tasks), key=max)

    config.lora.rank = 8
    config.lora.alpha = 16.0
    # One epoch: there is no best one to choose.
    config.train.epochs = 1
    config.train.keep = "last"
    config.train.batch_size = 16
    config.train.learning_rate = 1e-3
    config.train.remat = "none"
    config.train.checkpoint_steps = 100

    config.evaluate.batch_size = 128
    # An encoder would have to be fetched.
    config.evaluate.bertscore.model = ""
    config.updates.combined = True
    # All training rows are taken; those that come later are a split of their own.
    new = config.data.path.replace("{split}", "update")
    config.updates.plan = tuple(
        f"{x}={new.replace('{language}', x)}" if x in config.languages else x
        for x in config.updates.plan
    )

    config.demo.corpus = {
        # Spanish is kept for "add a language", as the split `update` is for "more data for one
        # language".
        "languages": ("en", "de", "fr", "ja", "zh", "es"),
        "rows": {"train": 2000, "update": 2000, "validation": 400, "test": 2000, "instruct": 800},
        "tasks": {name: dict(_ROWS) for name in tasks if name != "sentiment"},
        "unlabelled": 22000,
        "verdict": 1.0,
        "lexicon": {"aspects": 14, "positive": 20, "negative": 20, "neutral": 10},
        "grammar": {"opposed": 0.5, "opening": 0.1, "weak": 0.04, "strong": 0.08},
        "unlabelled_grammar": {"opposed": 0.5, "opening": 0.05, "weak": 0.04, "strong": 0.08},
        "seed": 0,
    }
    config.demo.base = {
        "vocab_size": 2560,
        "hidden_size": 128,
        "intermediate_size": 256,
        "layers": 3,
        "heads": 4,
        "kv_heads": 1,
        "batch_size": 48,
        "learning_rate": 3e-3,
        "instruct_epochs": 3,
        "instruct_batch_size": 32,
        "instruct_learning_rate": 1.5e-3,
        "buckets": (24, 40, 64),
        "checkpoint_steps": 200,
        "seed": 0,
    }
    return config


def sentiment_of_demo(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a copy of a demo's config whose task is the one that its base is tuned for."""
    found = ml_collections.ConfigDict(config, type_safe=False)
    with found.unlocked():
        sentiment = default()
        found.task, found.data = sentiment.task, sentiment.data
        _shrink(found.task, found.data)
    return found


def _shrink(task: ml_collections.ConfigDict, data: ml_collections.ConfigDict) -> None:
    """Points a task at the rows that the demo's generator writes."""
    name = task.name
    task.template = _TEMPLATES[name]
    task.templates = ml_collections.ConfigDict()
    task.max_length, task.max_new_tokens, _ = _LENGTHS[name]
    folder = "" if name == "sentiment" else f"{name}/"
    data.path = "{workdir}/corpus/{language}/" + folder + "{split}.jsonl"
    data.fields = ml_collections.ConfigDict(_FIELDS[name])
    data.language_field = ""
    data.names = ml_collections.ConfigDict()
    data.splits = ml_collections.ConfigDict()
    data.rows.update({"train": 0, "validation": 0, "test": 0})
