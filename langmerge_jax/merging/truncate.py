"""Merges at a smaller rank than they come at, and what that costs."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langmerge_jax.adapters import Adapter, Factors
from langmerge_jax.errors import InputError
from langmerge_jax.merging import lapack
from langmerge_jax.merging.dense import DenseDelta
from langmerge_jax.merging.spaces import PRECISION

# Of the randomized decomposition of full-rank deltas: directions drawn beyond those asked for, and
# how often the delta is applied to them and its transpose to that. The spectrum of a TIES delta of
# unrelated adapters falls slowly, which is the hard case; with these it keeps over 99 % of what the
# best truncation keeps, where a power iteration without the earlier blocks keeps 96 %.
_EXTRA = 16
_STEPS = 4


class Truncation:
    """Truncates modules one by one and keeps account of what is lost.

    Args:
        rank: A whole number; or a share of the energy in (0, 1), and each module gets the lowest
            rank that keeps it.

    Raises:
        InputError: If it is neither.
    """

    def __init__(self, rank: int | float):
        whole = isinstance(rank, int) and rank >= 1
        if not (whole or (isinstance(rank, float) and 0 < rank < 1)):
            raise InputError(
                f"rank {rank}: an adapter's rank is 1 or more, or a share of the energy in (0, 1)"
            )
        self.rank = rank
        self._kept = self._total = 0.0

    @property
    def energy(self) -> float:
        """The share of the squared singular values kept so far, over all modules; 1 of nothing."""
        return self._kept / self._total if self._total else 1.0

    def of_factors(self, a: jax.Array, b: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Truncates `b @ a`, exactly, from a decomposition as wide as its rank.

        Args:
            a, b: `[k, i]` and `[o, k]`.
        """
        with lapack.one_thread():
            a, b, values = jax.block_until_ready(_of_factors(a, b))
        total = float(jnp.sum(jnp.square(values)))
        return self._cut(a, b, np.asarray(values), total)

    def of_dense(self, delta: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Truncates a delta `[o, i]`, by a randomized decomposition where that is much cheaper.

        Args:
            delta: Of the module.
        """
        rank = self.rank
        total = float(_energy(delta))
        smaller = min(delta.shape)
        width = 64 if isinstance(rank, float) else rank
        while True:
            drawn = width + _EXTRA
            if drawn * (_STEPS + 1) > smaller // 2:
                return self._cut(*_of_dense(delta), total)
            with lapack.one_thread():
                a, b, values = jax.block_until_ready(_randomized(delta, drawn))
            if isinstance(rank, int):
                return self._cut(a, b, np.asarray(values), total)
            reached = np.flatnonzero(_kept(values) >= rank * total)
            if reached.size and reached[0] < width:
                return self._cut(a, b, np.asarray(values), total)
            width *= 2

    def _cut(self, a, b, values, total: float):
        rank, kept = self.rank, _kept(values)
        if isinstance(rank, float):
            reached = np.flatnonzero(kept >= rank * total)
            rank = int(reached[0]) + 1 if reached.size else kept.size
        rank = max(1, min(rank, kept.size))
        self._total += total
        self._kept += min(float(kept[rank - 1]), total)
        root = np.sqrt(np.asarray(values[:rank]))
        return root[:, None] * np.asarray(a[:rank]), np.asarray(b[:, :rank]) * root


def truncate(merged: Adapter | DenseDelta, rank: int | float) -> tuple[Adapter, float]:
    """Returns the closest adapter of at most `rank`, and how much of the merge it keeps.

    Each module becomes the truncated singular value decomposition of its delta, the best
    approximation of that rank in the Frobenius norm (Eckart & Young 1936). An adapter's delta is
    never built: with B = Q_b R_b and A^T = Q_a R_a only the core R_b R_a^T is decomposed. Large
    full-rank deltas are decomposed at random, by a block Krylov iteration (Musco & Musco, arXiv
    1504.05477), if the rank is far below theirs.

    Args:
        merged: A merge, of low or full rank.
        rank: Of every module of the result, where modules that have less keep it; or a share of the
            energy in (0, 1) that every module shall keep.

    Returns:
        (adapter, energy): the energy is the sum of the kept squared singular values over all
        modules, divided by the sum of all.

    Raises:
        InputError: If the rank is below 1 and no share.
    """
    truncation = Truncation(rank)
    if isinstance(merged, Adapter):
        modules = dict(_adapter_modules(merged, truncation))
        adapter = dataclasses.replace(merged, modules=modules)
    else:
        modules = {
            path: Factors(
                *truncation.of_dense(jnp.asarray(delta)),
                scale=1.0,
                embedding=path in merged.embeddings,
            )
            for path, delta in merged.items()
        }
        adapter = Adapter(modules, **_besides(merged))
    return adapter, truncation.energy


def _adapter_modules(adapter: Adapter, truncation: Truncation) -> Iterator[tuple[str, Factors]]:
    for path, factors in adapter.modules.items():
        a, b = (jnp.asarray(x, jnp.float32) for x in (factors.a, factors.b))
        a, b = truncation.of_factors(a, b * factors.scale)
        dtype = factors.a.dtype
        yield path, dataclasses.replace(factors, a=a.astype(dtype), b=b.astype(dtype), scale=1.0)


def dense(adapter: Adapter) -> DenseDelta:
    """Returns an adapter as full-rank deltas, to be folded into a base."""
    shapes = {path: (f.out_features, f.in_features) for path, f in adapter.modules.items()}

    def stream(paths: Iterable[str], in_order: bool) -> Iterator[tuple[str, jax.Array]]:
        del in_order  # They come so.
        for path in paths:
            factors = adapter.modules[path]
            b, a = (jnp.asarray(x, jnp.float32) for x in (factors.b, factors.a))
            yield path, factors.scale * jnp.matmul(b, a, precision=PRECISION)

    embeddings = [path for path, f in adapter.modules.items() if f.embedding]
    return DenseDelta(shapes, stream, embeddings=embeddings, **_besides(adapter))


def _besides(merged: Adapter | DenseDelta) -> dict[str, Any]:
    """What a merge holds besides its modules, whatever its rank."""
    names = ("base", "revision", "task_type", "heads", "fan_in_fan_out")
    return {name: getattr(merged, name) for name in names}


def highest_rank(adapter: Adapter) -> int:
    """Returns the largest rank of a module, at most what its shape allows."""
    return max(
        min(factors.rank, factors.in_features, factors.out_features)
        for factors in adapter.modules.values()
    )


def _kept(values: jax.Array | np.ndarray) -> np.ndarray:
    return np.cumsum(np.square(np.asarray(values), dtype=np.float64))


@jax.jit
def _of_factors(a: jax.Array, b: jax.Array):
    q_b, r_b = jnp.linalg.qr(b)
    q_a, r_a = jnp.linalg.qr(a.T)
    left, values, right = jnp.linalg.svd(
        jnp.matmul(r_b, r_a.T, precision=PRECISION), full_matrices=False
    )
    return (
        jnp.matmul(right, q_a.T, precision=PRECISION),
        jnp.matmul(q_b, left, precision=PRECISION),
        values,
    )


@jax.jit
def _of_dense(delta: jax.Array):
    left, values, right = jnp.linalg.svd(delta, full_matrices=False)
    return right, left, values


@jax.jit
def _energy(delta: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sum(jnp.square(delta), axis=1))


@functools.partial(jax.jit, static_argnames="width")
def _randomized(delta: jax.Array, width: int):
    """The leading part of an SVD, from a block Krylov space of `delta @ delta.T`."""

    def product(x, y):
        return jnp.matmul(x, y, precision=PRECISION)

    # One start for all: which one it is matters little.
    start = jax.random.normal(jax.random.key(0, impl="threefry2x32"), (delta.shape[1], width))
    block, _ = jnp.linalg.qr(product(delta, start.astype(delta.dtype)))
    blocks = [block]
    for _ in range(_STEPS):
        block, _ = jnp.linalg.qr(product(delta, product(block.T, delta).T))
        blocks.append(block)
    basis, _ = jnp.linalg.qr(jnp.concatenate(blocks, axis=1))
    q, r = jnp.linalg.qr(product(basis.T, delta).T)  # basis.T @ delta = r.T @ q.T
    left, values, right = jnp.linalg.svd(r.T, full_matrices=False)
    return product(right, q.T), product(basis, left), values
