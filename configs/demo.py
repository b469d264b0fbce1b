"""The demo: the paper's procedure, small enough for a laptop's CPU.

  make demo
  python -m langmerge_jax.experiment --config=configs/demo.py --workdir=runs/demo

Writes a corpus of product reviews in six languages, trains a tokenizer and a Llama of 0.7 million
parameters on it, five language adapters and a combined one, merges the five, and scores all. Then
English gets as many rows again, and Spanish joins. About thirteen minutes on two cores, a combined
macro F1 of about 0.95 (docs/demo.md).
"""

from langmerge_jax.config import default


def get_config():
    config = default()
    config.base = "{workdir}/base"
    config.dtype = "float32"
    # Two CPU devices take half of each batch: most operations of so small a model use one core.
    config.cpu_devices = 2
    # The rows of one adapter fit a CPU's cache, those of five do not.
    config.adapters_at_once = 1

    config.task.template = "{text}\nSentiment?"
    config.task.max_length = 64

    config.data.path = "{workdir}/corpus/{language}/{split}.jsonl"
    config.data.language_field = ""
    config.data.rows.update({"train": 0, "validation": 0, "test": 0})

    config.lora.rank = 8
    config.lora.alpha = 16.0
    # One epoch: there is no best one to choose.
    config.train.epochs = 1
    config.train.keep = "last"
    config.train.batch_size = 16
    config.train.learning_rate = 1e-3
    config.train.buckets = (24, 40, 64)
    config.train.remat = "none"
    config.train.checkpoint_steps = 100

    config.merge.tune_lambda = (1.0, 1.5, 2.0, 3.0)
    config.merge.tune_recipes = ("ties@1.0", "ties@0.5", "ties_knots@1.0", "ties_knots@0.5")
    config.evaluate.batch_size = 128
    config.evaluate.baselines = True
    config.evaluate.ranks = True

    config.updates.plan = ("en={workdir}/corpus/en/update.jsonl", "es")
    config.updates.combined = True
    config.updates.warm_start = 0.2

    config.demo.corpus = {
        # Spanish is not among config.languages: it is kept for "add a language", as the split
        # `update` is for "more data for one language".
        "languages": ("en", "de", "fr", "ja", "zh", "es"),
        "rows": {"train": 2000, "update": 2000, "validation": 400, "test": 2000, "instruct": 800},
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
