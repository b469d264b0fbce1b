"""What gets evaluated: the base, adapters and merges, by name."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langmerge_jax.adapters import Adapter
from langmerge_jax.errors import InputError
from langmerge_jax.lifecycle.clusters import clusters_of
from langmerge_jax.lifecycle.merging import MergeSpec, merged, of_languages, there, trained
from langmerge_jax.lifecycle.run import COMBINED, Run
from langmerge_jax.lifecycle.stages import identity
from langmerge_jax.merging import DenseDelta, Recipe, parse

BASE, INDIVIDUAL, ROUTED, TUNED, CLUSTERED = "base", "individual", "routed", "tuned", "clustered"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One thing that answers.

    Attributes:
      inputs: what it is made from.
      load: gives what stands on the base: nothing, an adapter, or a dense delta, which is folded
        into a copy of the weights.
      languages: that it is asked in; None is all of the run's.
    """

    inputs: dict[str, Any]
    load: Callable[[], Adapter | DenseDelta | None]
    languages: tuple[str, ...] | None = None


def adapter_variant(run: Run, name: str) -> Variant:
    """Returns a trained adapter as a variant."""
    return Variant({"adapter": identity(there(run, name))}, lambda: trained(run, name))


def merge_variant(
    run: Run, spec: MergeSpec, languages: tuple[str, ...] | None = None, *, keep: bool = True
) -> Variant:
    """Returns a merge as a variant.

    Args:
      languages: that it is asked in, None for all.
      keep: whether the merged adapter is to be written, see `merged`.
    """
    return Variant(spec.inputs(run), lambda: merged(run, spec, keep=keep), languages)


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of the score table.

    Attributes:
      parts: {language: name of the variant that answers there}.
      variants: {name: those of them that the model has to answer for}.
    """

    parts: dict[str, str]
    variants: dict[str, Callable[[], Variant]]


def table_rows(
    run: Run, tuned: Callable[[], Recipe], extra: Mapping[str, Variant]
) -> dict[str, TableRow]:
    """Returns the rows of a run's score table.

    Args:
      tuned: finds the recipe that does best on validation rows.
      extra: {name: variant} beside the run's own.
    """
    languages = run.languages

    def same(name: str, make: Callable[[], Variant]) -> TableRow:
        return TableRow(dict.fromkeys(languages, name), {name: make})

    found = {BASE: same(BASE, lambda: Variant({}, lambda: None))}
    if run.adapter_directory(COMBINED).exists():
        found[COMBINED] = same(COMBINED, lambda: adapter_variant(run, COMBINED))
    found[INDIVIDUAL] = TableRow(
        {x: individual(x) for x in languages},
        {individual(x): lambda x=x: adapter_variant(run, x) for x in languages},
    )
    if len(languages) > 1:  # Chosen among what the adapters answered.
        parts = dict.fromkeys(languages, ROUTED)
        found[ROUTED] = TableRow(parts, found[INDIVIDUAL].variants)
    for recipe in map(parse, run.config.merge.recipes):
        found[recipe.name] = same(
            recipe.name, lambda r=recipe: merge_variant(run, of_languages(run, r))
        )
    if run.config.merge.tune_lambda:
        found[TUNED] = same(TUNED, lambda: merge_variant(run, of_languages(run, tuned())))
    return found | _clustered(run) | {n: same(n, lambda v=v: v) for n, v in extra.items()}


def individual(language: str) -> str:
    """Returns the name of the variant that is one language's adapter."""
    return f"{INDIVIDUAL}-{language}"


def _clustered(run: Run) -> dict[str, TableRow]:
    """Each recipe with every language answered by the merge of its own cluster."""
    clusters = clusters_of(run)
    found = {}
    for recipe in map(parse, run.config.merge.recipes) if clusters else ():
        parts, variants = {}, {}
        for cluster, languages in clusters.items():
            name = f"{cluster}/{recipe.name}"
            parts |= dict.fromkeys(languages, name)
            variants[name] = lambda r=recipe, x=languages, n=name: merge_variant(
                run, of_languages(run, r, x, name=n), x
            )
        found[f"{CLUSTERED}/{recipe.name}"] = TableRow(
            {x: parts[x] for x in run.languages}, variants
        )
    return found


def chosen(found: Mapping[str, TableRow], names: Sequence[str]) -> dict[str, TableRow]:
    """Returns the rows of these names, in the table's order; all without names.

    Raises:
      InputError: for a name that is no row.
    """
    if unknown := [name for name in names if name not in found]:
        raise InputError(f"--variants={unknown[0]}: this run has {', '.join(found)}")
    return {name: rows for name, rows in found.items() if name in names or not names}
