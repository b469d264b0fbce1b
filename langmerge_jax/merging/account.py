"""What a merge was made from and what became of it: the facts behind a card."""

import dataclasses
import hashlib
import importlib.metadata
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from langmerge_jax.adapters import Factors
from langmerge_jax.merging.engine import Merge
from langmerge_jax.merging.similarity import inner_products, normalised, sign_masses

# Outputs of a module from which the share of conflicting signs is estimated: with 4,096 inputs a
# quarter of a million entries a module, so the estimate of a group is good to a tenth of a percent.
_ROWS = 64
_BLOCK = 2**22


class Account:
    """Takes notes while a merge's modules stream by.

    Args:
        ready: The merge.
    """

    def __init__(self, ready: Merge):
        self._ready = ready
        n = len(ready.names)
        self._products: dict[str, np.ndarray] = {}
        self._signs: dict[str, np.ndarray] = {}
        self._merged: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._rank = 0
        self._scales: set[float] = set()
        self._none = np.zeros((n, n))

    def factors(self, items: Iterable[tuple[str, Factors]]) -> Iterator[tuple[str, Factors]]:
        """Passes the merged factors on and notes what they are."""
        for path, factors in items:
            self._rank = max(self._rank, factors.rank)
            self._scales.add(factors.scale)
            self._note(path, float(inner_products([factors])[0, 0]))
            yield path, factors

    def deltas(self, items: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
        """Passes the merged deltas on and notes what they are."""
        for path, delta in items:
            flat = delta.reshape(-1)
            blocks = (flat[i : i + _BLOCK] for i in range(0, flat.size, _BLOCK))
            self._note(path, sum(float(np.vdot(x, x)) for x in blocks))
            yield path, delta

    def facts(
        self, sources: Mapping[str, pathlib.Path], folded_into: pathlib.Path | None = None
    ) -> dict[str, Any]:
        """Returns all there is to tell, as JSON values; for NaN and infinity stands None.

        Args:
            sources: The directory of each adapter.
            folded_into: The base's directory, where the result is a model.
        """
        ready = self._ready
        products = sum(self._products.values(), self._none)
        return {
            "recipe": ready.recipe.name,
            "settings": dataclasses.asdict(ready.recipe),
            "weights": {name: ready.given_weights[name] for name in ready.names},
            "seed": ready.seed,
            **ready.choices,
            "base": ready.base,
            "folded_into": None if folded_into is None else str(folded_into.resolve()),
            "task_type": ready.task_type,
            "inputs": {
                name: {
                    "path": str(sources[name].resolve()),
                    "sha256": _hashes(sources[name]),
                    "rank": max(stack[i].rank for stack in ready.stacks.values()),
                    "norm": _number(math.sqrt(products[i, i])),
                }
                for i, name in enumerate(ready.names)
            },
            "cosines": [[_number(x) for x in row] for row in normalised(products)],
            "norm": _number(math.sqrt(sum(self._merged.values()))),
            "groups": {group: self._group(group) for group in self._counts},
            "modules": sum(self._counts.values()),
            "rank": self._rank or None,
            "energy": ready.energy,
            # A folded model keeps its base's.
            "dtype": None if folded_into is not None else ready.dtype.name,
            "scales": sorted(self._scales),
            "head_tensors": sorted(ready.heads),
            "versions": {
                "langmerge_jax": importlib.metadata.version("langmerge-jax"),
                "jax": jax.__version__,
            },
        }

    def _group(self, group: str) -> dict[str, Any]:
        mass, against = self._signs[group]
        return {
            "modules": self._counts[group],
            "sign_conflict": against / mass if mass else 0.0,
            "norms": [_number(math.sqrt(x)) for x in np.diag(self._products[group])],
            "norm": _number(math.sqrt(self._merged[group])),
        }

    def _note(self, path: str, square: float) -> None:
        group = path.rpartition(".")[2]
        stack = self._ready.stacks[path]
        products, signs = inner_products(stack), np.array(sign_masses(stack, _ROWS))
        self._products[group] = self._products.get(group, self._none) + products
        self._signs[group] = self._signs.get(group, np.zeros(2)) + signs
        self._merged[group] = self._merged.get(group, 0.0) + square
        self._counts[group] = self._counts.get(group, 0) + 1


def _hashes(directory: pathlib.Path) -> dict[str, str]:
    """SHA-256 of the files that make the adapter, by name."""
    found = {}
    for path in sorted(directory.iterdir()):
        if path.suffix == ".safetensors" or path.name == "adapter_config.json":
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
