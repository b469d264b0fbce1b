"""Merging adapters without data: spaces, sparsifiers, consensus, and recipes that name them."""

from langmerge_jax.merging.dense import DenseDelta
from langmerge_jax.merging.engine import Merge, merge
from langmerge_jax.merging.recipe import PRESETS, Recipe, parse

__all__ = ["PRESETS", "DenseDelta", "Merge", "Recipe", "merge", "parse"]
