"""The demo: the paper's procedure, small enough for a laptop's CPU.

  make demo
  python -m langmerge_jax.experiment --config=configs/demo.py --workdir=runs/demo

Writes a corpus of product reviews in six languages, trains a tokenizer and a Llama of 0.7 million
parameters on it, five language adapters and a combined one, merges the five, and scores all. Then
English gets as many rows again, and Spanish joins. About thirteen minutes on two cores, a combined
macro F1 of about 0.95 (docs/demo.md). langmerge_jax/demo/config.py has the settings of corpus, base
and training; every experiment of configs/ takes them by ":demo" behind its name.
"""

from langmerge_jax.config import default
from langmerge_jax.demo.config import for_demo


def get_config():
    config = default()
    config.merge.tune_lambda = (1.0, 1.5, 2.0, 3.0)
    config.merge.tune_recipes = ("ties@1.0", "ties@0.5", "ties_knots@1.0", "ties_knots@0.5")
    config.evaluate.baselines = True
    config.evaluate.ranks = True
    config.updates.plan = ("en", "es")
    config.updates.warm_start = 0.2
    return for_demo(config)
