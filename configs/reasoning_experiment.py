"""The paper's tables on reasoning: every recipe, and clusters.

  python -m langmerge_jax.experiment --config=configs/reasoning_experiment.py

trains five adapters (2,500 steps of 5 x 8 rows) and a combined one (12,500 steps of 8), merges by
the paper's eight recipes, linear, and PEFT's reading of linear, TIES and DARE-TIES, each over all
languages and within the paper's clusters, and scores all on 500 test rows a language. The paper
updates English for its other two tasks only. Device hours were not measured.

Score: the paper's value could not be read (docs/paper.md).

:demo behind the file's name runs all of it at the size of configs/demo.py.
"""

from langmerge_jax.demo.config import sized
from langmerge_jax.paper import clustered, experiment


def get_config(size=""):
    return sized(clustered(experiment("reasoning")), size)
