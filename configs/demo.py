"""The demo: the paper's procedure, small enough for a laptop's CPU.

  make demo
  python -m langmerge_jax.experiment --config=configs/demo.py --workdir=runs/demo

Writes a corpus of product reviews in six languages, trains a tokenizer and a Llama of 0.8 million
parameters on it, five language adapters and a combined one, merges the five, and scores all.
"""

from langmerge_jax.config import PAPER_RECIPES, default


def get_config():
    config = default()
    config.base = "{workdir}/base"
    config.dtype = "float32"

    config.task.template = "{text}\nSentiment?"
    config.task.max_length = 64

    config.data.path = "{workdir}/corpus/{language}/{split}.jsonl"
    config.data.language_field = ""
    config.data.rows = {"train": 0, "validation": 0, "test": 0}

    config.lora.rank = 8
    config.lora.alpha = 16.0
    config.train.batch_size = 16
    config.train.learning_rate = 3e-3
    config.train.buckets = (32, 48, 64)
    config.train.remat = False

    config.merge.tune_lambda = (1.0, 1.5, 2.0, 3.0)
    config.merge.tune_recipes = tuple(
        name for name in PAPER_RECIPES if name not in ("dare_ties@1.0", "dare_ties_knots@1.0")
    )
    config.evaluate.batch_size = 128
    config.evaluate.ngram_baseline = True

    config.demo.corpus = {
        # Spanish is not among config.languages: it is kept for "add a language".
        "languages": ("en", "de", "fr", "ja", "zh", "es"),
        "rows": {"train": 2000, "validation": 400, "test": 2000, "instruct": 400},
        "unlabelled": 15000,
        "verdict": 1.0,
        "grammar": {},
        "seed": 0,
    }
    config.demo.base = {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 352,
        "layers": 3,
        "heads": 4,
        "kv_heads": 2,
        "sequence_length": 64,
        "batch_size": 32,
        "steps": 500,
        "learning_rate": 3e-3,
        "instruct_epochs": 3,
        "instruct_batch_size": 32,
        "instruct_learning_rate": 1e-3,
        "buckets": (32, 48, 64),
        "seed": 0,
    }
    return config
