"""The merging stage: individual adapters become merged ones, by every recipe of the config."""

import logging
import pathlib
from typing import Any

from langmerge_jax.adapters import Adapter, load_adapter
from langmerge_jax.errors import InputError
from langmerge_jax.lifecycle.run import Run
from langmerge_jax.lifecycle.stages import identity, is_current, making
from langmerge_jax.lifecycle.writing import write_merged_adapter
from langmerge_jax.merging import DenseDelta, Merge, Recipe, parse
from langmerge_jax.merging.sparsify import RANDOM
from langmerge_jax.merging.threefry import STREAM

logger = logging.getLogger(__name__)


def trained(run: Run, name: str) -> Adapter:
    """Loads a trained adapter.

    Raises:
      InputError: if it is not there.
    """
    return load_adapter(there(run, name))


def there(run: Run, name: str) -> pathlib.Path:
    """Returns where a trained adapter lies.

    Raises:
      InputError: if it does not.
    """
    directory = run.adapter_directory(name)
    if not directory.exists():
        raise InputError(f"{directory}: no adapter {name!r} yet; run the train door first")
    return directory


def merged(run: Run, recipe: Recipe, *, keep: bool = True) -> Adapter | DenseDelta:
    """Merges the individual adapters, or loads the merged adapter that is there already.

    A low-rank merge is written to `merged/<recipe>` in PEFT format if it is to be kept. A
    full-rank one is computed anew each time, module by module, and never stored.
    """
    directory, inputs = run.merged_directory(recipe.name), merge_inputs(run, recipe)
    if is_current(directory, inputs):
        return load_adapter(directory)
    ready = Merge(
        {language: trained(run, language) for language in run.languages},
        recipe,
        seed=run.config.merge.seed,
        # A base inside the workdir has another path whenever the workdir is moved.
        allow_base_mismatch="{workdir}" in run.config.base,
    )
    if recipe.full_rank:
        return ready.deltas()
    if not keep:
        return ready.adapter(dict(ready.factors()))
    with making(directory, inputs) as work:
        write_merged_adapter(ready, {x: there(run, x) for x in run.languages}, work)
    return load_adapter(directory)


def merge_inputs(run: Run, recipe: Recipe) -> dict[str, Any]:
    """Returns what a merge is made from."""
    adapters = {x: identity(there(run, x)) for x in run.languages}
    found = {"adapters": adapters, "recipe": recipe.name, "seed": run.config.merge.seed}
    return found | ({"masks": STREAM} if recipe.sparsify in RANDOM else {})


def merge_all(run: Run) -> None:
    """Merges by every recipe of the config."""
    for name in run.config.merge.recipes:
        recipe = parse(name)
        directory = run.merged_directory(recipe.name)
        if is_current(directory, merge_inputs(run, recipe)):
            logger.info("merge there already, skipped: %s", recipe.name)
            continue
        result = merged(run, recipe)
        if isinstance(result, Adapter):
            rank = max(factors.rank for factors in result.modules.values())
            logger.info("merged by %s: adapter of rank %d, %s", recipe.name, rank, directory)
        else:
            logger.info("merged by %s: full rank, folded into the base when used", recipe.name)
