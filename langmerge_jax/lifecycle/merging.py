"""The merging stage: individual adapters become merged ones, by every recipe of the config."""

import logging

from langmerge_jax.adapters import Adapter, load_adapter, save_adapter
from langmerge_jax.errors import InputError
from langmerge_jax.lifecycle.run import Run
from langmerge_jax.merging import DenseDelta, Recipe, merge, parse

logger = logging.getLogger(__name__)


def trained(run: Run, name: str) -> Adapter:
    """Loads a trained adapter.

    Raises:
      InputError: if it is not there.
    """
    directory = run.adapter_directory(name)
    if not directory.exists():
        raise InputError(f"{directory}: no adapter {name!r} yet; run the train door first")
    return load_adapter(directory)


def merged(run: Run, recipe: Recipe, *, keep: bool = True) -> Adapter | DenseDelta:
    """Merges the individual adapters, or loads the merged adapter that is there already.

    A low-rank merge is written to `merged/<recipe>` in PEFT format if it is to be kept. A
    full-rank one is computed anew each time, module by module, and never stored.
    """
    directory = run.merged_directory(recipe.name)
    if directory.exists():
        return load_adapter(directory)
    adapters = {language: trained(run, language) for language in run.config.languages}
    result = merge(
        adapters,
        recipe,
        seed=run.config.merge.seed,
        # A base inside the workdir has another path whenever the workdir is moved.
        check_base_name="{workdir}" not in run.config.base,
    )
    if keep and isinstance(result, Adapter):
        save_adapter(directory, result)
    return result


def merge_all(run: Run) -> None:
    """Merges by every recipe of the config."""
    for name in run.config.merge.recipes:
        recipe = parse(name)
        directory = run.merged_directory(recipe.name)
        if directory.exists():
            logger.info("merge there already, skipped: %s", recipe.name)
            continue
        result = merged(run, recipe)
        if isinstance(result, Adapter):
            rank = max(factors.rank for factors in result.modules.values())
            logger.info("merged by %s: adapter of rank %d, %s", recipe.name, rank, directory)
        else:
            logger.info("merged by %s: full rank, folded into the base when used", recipe.name)
