"""The merging stage: individual adapters become merged ones, by every recipe of the config."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
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


@dataclasses.dataclass(frozen=True)
class MergeSpec:
    """A merge that is wanted.

    Attributes:
      name: of the result.
      recipe: to merge by.
      adapters: {name: directory} of what is merged.
      weights: {name of an adapter: its weight}; empty for equal ones.
    """

    name: str
    recipe: Recipe
    adapters: Mapping[str, pathlib.Path]
    weights: Mapping[str, float]

    def inputs(self, run: Run) -> dict[str, Any]:
        """Returns what the merge is made from."""
        found: dict[str, Any] = {
            "adapters": {name: identity(path) for name, path in self.adapters.items()},
            "recipe": self.recipe.name,
            "seed": run.config.merge.seed,
        }
        if self.weights:
            found["weights"] = dict(self.weights)
        return found | ({"masks": STREAM} if self.recipe.sparsify in RANDOM else {})


def of_languages(
    run: Run, recipe: Recipe, languages: Sequence[str] | None = None, *, name: str = ""
) -> MergeSpec:
    """Returns the merge of the adapters of languages, weighted as the config says.

    Args:
      languages: to merge; None for all of the run.
      name: of the result; that of the recipe by default.

    Raises:
      InputError: if one has no adapter, or a weight is of no language.
    """
    languages = run.languages if languages is None else languages
    weights = run.config.merge.weights.to_dict()
    joining = (entry.partition("=")[0] for entry in run.config.updates.plan)
    if unknown := set(weights) - {*run.languages, *joining}:
        raise InputError(
            f"merge.weights.{min(unknown)}: the languages are {', '.join(run.languages)}"
        )
    return MergeSpec(
        name or recipe.name,
        recipe,
        {language: there(run, language) for language in languages},
        {language: weights.get(language, 1.0) for language in languages} if weights else {},
    )


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


def merged(run: Run, spec: MergeSpec, *, keep: bool = True) -> Adapter | DenseDelta:
    """Merges adapters, or loads the merged adapter that is there already.

    A low-rank merge is written to `merged/<name>` in PEFT format if it is to be kept. A full-rank
    one is computed anew each time, module by module, and never stored.
    """
    directory, inputs = run.merged_directory(spec.name), spec.inputs(run)
    if is_current(directory, inputs):
        return load_adapter(directory)
    ready = Merge(
        {name: load_adapter(path) for name, path in spec.adapters.items()},
        spec.recipe,
        weights=spec.weights or None,
        seed=run.config.merge.seed,
        # A base inside the workdir has another path whenever the workdir is moved.
        allow_base_mismatch="{workdir}" in run.config.base,
    )
    if spec.recipe.full_rank:
        return ready.deltas()
    if not keep:
        return ready.adapter(dict(ready.factors()))
    with making(directory, inputs) as work:
        write_merged_adapter(ready, spec.adapters, work)
    return load_adapter(directory)


def merge_all(run: Run) -> None:
    """Merges by every recipe of the config."""
    for name in run.config.merge.recipes:
        spec = of_languages(run, parse(name))
        directory = run.merged_directory(spec.name)
        if is_current(directory, spec.inputs(run)):
            logger.info("merge there already, skipped: %s", spec.name)
            continue
        result = merged(run, spec)
        if isinstance(result, Adapter):
            rank = max(factors.rank for factors in result.modules.values())
            logger.info("merged by %s: adapter of rank %d, %s", spec.name, rank, directory)
        else:
            logger.info("merged by %s: full rank, folded into the base when used", spec.name)
