"""Merges at a smaller rank than they come at, and what that costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from langmerge_jax.adapters import Adapter, Factors
from langmerge_jax.errors import InputError
from langmerge_jax.merging.dense import DenseDelta


def truncate(merged: Adapter | DenseDelta, rank: int) -> tuple[Adapter, float]:
    """Returns the closest adapter of at most `rank`, and how much of the merge it keeps.

    Each module becomes the truncated singular value decomposition of its delta, the best
    approximation of that rank in the Frobenius norm (Eckart & Young 1936). An adapter's delta is
    never built: with B = Q_b R_b and A^T = Q_a R_a only the core R_b R_a^T is decomposed.

    Args:
        merged: A merge, of low or full rank.
        rank: Of every module of the result; modules that have less keep it.

    Returns:
        (adapter, energy): the energy is the sum of the kept squared singular values over all
        modules, divided by the sum of all.

    Raises:
        InputError: If the rank is below 1.
    """
    if rank < 1:
        raise InputError(f"rank {rank}: an adapter's rank is 1 or more")
    modules, kept, total = {}, 0.0, 0.0
    items = merged.modules.items() if isinstance(merged, Adapter) else merged.items()
    for path, item in items:
        a, b, values = _decompose(item)
        energy = np.square(values, dtype=np.float64)
        kept, total = kept + energy[:rank].sum(), total + energy.sum()
        dtype = item.a.dtype if isinstance(item, Factors) else np.float32
        modules[path] = Factors(a[:rank].astype(dtype), b[:, :rank].astype(dtype), scale=1.0)
    if isinstance(merged, Adapter):
        adapter = dataclasses.replace(merged, modules=modules)
    else:
        adapter = Adapter(modules, base=merged.base)
    return adapter, float(kept / total) if total else 1.0


def dense(adapter: Adapter) -> DenseDelta:
    """Returns an adapter as full-rank deltas, to be folded into a base."""
    shapes = {path: (f.out_features, f.in_features) for path, f in adapter.modules.items()}

    def compute(path: str) -> jax.Array:
        factors = adapter.modules[path]
        b, a = (jnp.asarray(x, jnp.float32) for x in (factors.b, factors.a))
        return (factors.scale * jnp.matmul(b, a, precision="highest")).ravel()

    return DenseDelta(shapes, compute, adapter.base)


@jax.jit
def _of_factors(a: jax.Array, b: jax.Array):
    q_b, r_b = jnp.linalg.qr(b)
    q_a, r_a = jnp.linalg.qr(a.T)
    left, values, right = jnp.linalg.svd(
        jnp.matmul(r_b, r_a.T, precision="highest"), full_matrices=False
    )
    return (
        jnp.matmul(right, q_a.T, precision="highest"),
        jnp.matmul(q_b, left, precision="highest"),
        values,
    )


@jax.jit
def _of_dense(delta: jax.Array):
    left, values, right = jnp.linalg.svd(delta, full_matrices=False)
    return right, left, values


def _decompose(item: Factors | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A, B, singular values), the values split evenly between A and B."""
    if isinstance(item, Factors):
        a, b = (jnp.asarray(x, jnp.float32) for x in (item.a, item.b))
        a, b, values = _of_factors(a, b * item.scale)
    else:
        a, b, values = _of_dense(jnp.asarray(item))
    root = jnp.sqrt(values)
    return np.asarray(root[:, None] * a), np.asarray(b * root), np.asarray(values)


def highest_rank(adapter: Adapter) -> int:
    """Returns the largest rank of a module, at most what its shape allows."""
    return max(
        min(factors.rank, factors.in_features, factors.out_features)
        for factors in adapter.modules.values()
    )
