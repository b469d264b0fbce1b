"""Writes a merge with its card, streamed: one module at a time, all of it or nothing."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from langmerge_jax.adapters.writing import CARD_NAME, RECORD_NAME, write_adapter
from langmerge_jax.merging import DenseDelta, Merge
from langmerge_jax.merging.account import Account
from langmerge_jax.merging.fold import fold_directory
from langmerge_jax.progress import track
from langmerge_jax.reporting.card import card


def write_merged_adapter(
    ready: Merge, sources: Mapping[str, pathlib.Path], output: pathlib.Path
) -> dict[str, Any]:
    """Merges into an adapter in PEFT's format.

    Args:
        ready: A merge whose result is an adapter.
        sources: The directory of each adapter, for the card.
        output: See `write_adapter`.

    Returns:
        What `merge.json` says; see `Account.facts`.

    Raises:
        InputError: If the recipe is full rank, or `output` is something else.
    """
    account, facts = Account(ready), {}
    items = account.factors(ready.factors())
    write_adapter(
        output,
        track(items, "merge", len(ready.stacks), "module"),
        base=ready.base,
        revision=ready.revision,
        task_type=ready.task_type,
        heads=ready.heads,
        fan_in_fan_out=ready.fan_in_fan_out,
        companions=lambda: _told(facts, account.facts(sources)),
        paths=ready.stacks,
    )
    return facts


def write_merged_model(
    ready: Merge, sources: Mapping[str, pathlib.Path], base: pathlib.Path, output: pathlib.Path
) -> dict[str, Any]:
    """Merges and folds into a copy of the base model.

    Args:
        ready: The merge.
        sources: The directory of each adapter, for the card.
        base, output: See `fold_directory`.

    Returns:
        What `merge.json` says; see `Account.facts`.

    Raises:
        InputError: If `output` exists or the base does not fit.
    """
    account, facts, deltas = Account(ready), {}, ready.deltas()
    noted = DenseDelta(
        deltas.modules,
        lambda paths, in_order: account.deltas(deltas.items(paths, in_order=in_order)),
        base=deltas.base,
        embeddings=deltas.embeddings,
        heads=deltas.heads,
        fan_in_fan_out=deltas.fan_in_fan_out,
    )
    fold_directory(
        base,
        noted,
        output,
        companions=lambda: _told(facts, account.facts(sources, folded_into=base)),
    )
    return facts


def _told(facts: dict[str, Any], found: Mapping[str, Any]) -> dict[str, str]:
    """Keeps what was found in `facts`, for the caller; returns the texts that tell it."""
    facts.update(found)
    return {
        CARD_NAME: card(facts),
        RECORD_NAME: json.dumps(facts, indent=2, ensure_ascii=False) + "\n",
    }
