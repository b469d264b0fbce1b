"""The merged change of a model whose merge does not keep low rank."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np

from langmerge_jax.errors import InputError


class DenseDelta:
    """Full-rank deltas by module, computed when asked for and never held whole.

    Args:
        modules: `(out, in)` by module path, in natural order.
        stream: From module paths, and whether their order matters, to each path and its delta
            `[out, in]`; it may work ahead.
        base: Name or path of the base model the deltas belong to, if known.
        embeddings: The modules that are embeddings, whose weight lies `[in, out]`.
        heads: Whole tensors by name that take the place of the base's.
        revision, task_type, fan_in_fan_out: As in `Adapter`.
    """

    def __init__(
        self,
        modules: Mapping[str, tuple[int, int]],
        stream: Callable[[Iterable[str], bool], Iterator[tuple[str, jax.Array | np.ndarray]]],
        *,
        base: str | None = None,
        embeddings: Iterable[str] = (),
        heads: Mapping[str, np.ndarray] | None = None,
        revision: str | None = None,
        task_type: str | None = None,
        fan_in_fan_out: bool = False,
    ):
        self.modules = dict(modules)
        self.base = base
        self.embeddings = frozenset(embeddings)
        self.heads = dict(heads or {})
        self.revision = revision
        self.task_type = task_type
        self.fan_in_fan_out = fan_in_fan_out
        self._stream = stream

    @property
    def transposed(self) -> frozenset[str]:
        """The modules whose weight is stored `[in, out]`, and changes by the transpose."""
        return frozenset(self.modules) if self.fan_in_fan_out else self.embeddings

    def delta(self, module: str) -> np.ndarray:
        """The delta of one module, `[out, in]`, read-only.

        Its dtype is float32, or float64 where jax has 64-bit types enabled.

        Raises:
            InputError: If there is no such module.
        """
        return next(self.items([module]))[1]

    def items(
        self, modules: Iterable[str] | None = None, *, in_order: bool = False
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Modules and their deltas; the device computes ahead while the caller uses one.

        Args:
            modules: Those wanted, all by default.
            in_order: Whether they must come in this order; without, more devices can be used.

        Raises:
            InputError: If there is no such module.
        """
        wanted = list(self.modules if modules is None else modules)
        for module in wanted:
            if module not in self.modules:
                raise InputError(
                    f"no module {module!r} in this merge; it has {', '.join(self.modules)}"
                )
        for module, delta in self._stream(wanted, in_order):
            yield module, np.asarray(delta)
