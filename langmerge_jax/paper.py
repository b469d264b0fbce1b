"""What the paper compares on each task, over `config.default`; the runs are in `configs/`."""

import ml_collections

from langmerge_jax.config import PAPER_RECIPES, default
from langmerge_jax.errors import InputError

# The paper's groups of related languages (docs/paper.md).
CLUSTERS = {"european": ("en", "de", "fr"), "east_asian": ("ja", "zh")}

# Where it is silent on merge space: the paper's recipes on deltas, then PEFT's on A and B apart.
RECIPES = (
    *PAPER_RECIPES,
    "linear",
    "peft/linear",
    *(f"peft/{method}@{density}" for density in ("1.0", "0.5") for method in ("ties", "dare_ties")),
)

# The paper does not say by which recipe an update merges; this one gives an adapter to serve.
UPDATE_RECIPE = "ties_knots@0.5"


def experiment(task: str) -> ml_collections.ConfigDict:
    """Returns the paper's set-up for one task with every recipe that its tables compare."""
    config = default(task)
    config.merge.recipes = RECIPES
    return config


def updated(config: ml_collections.ConfigDict, language: str) -> ml_collections.ConfigDict:
    """Plans that one language gets more rows, beside `combined` retrained; returns the config."""
    config.updates.plan = (language,)
    config.updates.recipe = UPDATE_RECIPE
    config.updates.combined = True
    return config


def clustered(config: ml_collections.ConfigDict, which: str = "") -> ml_collections.ConfigDict:
    """Also merges clusters of languages apart; returns the config.

    Args:
      which: the paper's clusters for "", as many by shared vocabulary for "found".

    Raises:
      InputError: for another word.
    """
    if which not in ("", "found"):
        raise InputError(f"{which!r} are no clusters; behind the colon stands found, or nothing")
    if which:
        config.merge.find_clusters = len(CLUSTERS)
    else:
        config.merge.clusters = CLUSTERS
    return config
