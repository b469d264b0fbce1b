"""The merged change of a model whose merge does not keep low rank."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import jax
import numpy as np

from langmerge_jax.errors import InputError

T = TypeVar("T")


def computed_ahead(modules: Iterable[str], compute: Callable[[str], T]) -> Iterator[tuple[str, T]]:
    """Each module and its result, with the next one's computation dispatched already."""
    waiting: list[tuple[str, T]] = []
    for module in modules:
        waiting.append((module, compute(module)))
        if len(waiting) == 2:
            yield waiting.pop(0)
    yield from waiting


class DenseDelta:
    """Full-rank deltas by module, computed when asked for and never held whole.

    Args:
        modules: `(out, in)` by module path, in natural order.
        compute: From a module path to its delta, dispatched to the device: flat, row-major, and
            perhaps longer than out * in.
        base: Name or path of the base model the deltas belong to, if known.
    """

    def __init__(
        self,
        modules: Mapping[str, tuple[int, int]],
        compute: Callable[[str], jax.Array],
        base: str | None,
    ):
        self.modules = dict(modules)
        self.base = base
        self._compute = compute

    def delta(self, module: str) -> np.ndarray:
        """The delta of one module, `[out, in]`, read-only.

        Its dtype is float32, or float64 where jax has 64-bit types enabled.

        Raises:
            InputError: If there is no such module.
        """
        if module not in self.modules:
            raise InputError(
                f"no module {module!r} in this merge; it has {', '.join(self.modules)}"
            )
        return self._shaped(module, self._compute(module))

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every module and its delta; the device computes one while the caller uses another."""
        for module, delta in computed_ahead(self.modules, self._compute):
            yield module, self._shaped(module, delta)

    def _shaped(self, module: str, flat: jax.Array) -> np.ndarray:
        shape = self.modules[module]
        return np.asarray(flat)[: math.prod(shape)].reshape(shape)
