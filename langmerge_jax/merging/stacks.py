"""The adapters of a merge by module: what lies beside what, and what comes of no arithmetic."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from langmerge_jax.adapters import Adapter, Factors, natural_order

Stacks = dict[str, list[Factors]]
Signature = tuple[int, int, tuple[int, ...], tuple[str, ...]]  # out, in, ranks and dtypes


def compute_dtype() -> np.dtype:
    """The dtype of a merge's arithmetic: float32, or float64 where jax has 64-bit types enabled."""
    return np.dtype(np.float64 if jax.config.jax_enable_x64 else np.float32)


def stacked(adapters: Mapping[str, Adapter], *, equal_ranks: bool) -> Stacks:
    """Returns the factors of all adapters by module, in natural order.

    Args:
        adapters: In the order of the lists.
        equal_ranks: Whether the zeros that stand for a module which an adapter lacks must have the
            rank of the others.
    """
    paths = {path for adapter in adapters.values() for path in adapter.modules}
    stacks = {}
    for path in sorted(paths, key=natural_order):
        found = [adapter.modules.get(path) for adapter in adapters.values()]
        one = next(factors for factors in found if factors is not None)
        rank = one.rank if equal_ranks else 1
        zeros = dataclasses.replace(
            one,
            a=np.zeros((rank, one.in_features), one.a.dtype),
            b=np.zeros((one.out_features, rank), one.b.dtype),
        )
        stacks[path] = [zeros if factors is None else factors for factors in found]
    return stacks


def signature(stack: Sequence[Factors]) -> Signature:
    """What modules must have in common to share their compiled programs."""
    return (
        stack[0].out_features,
        stack[0].in_features,
        tuple(factors.rank for factors in stack),
        tuple(x.dtype.name for factors in stack for x in (factors.a, factors.b)),
    )


def alike(stacks: Stacks, paths: Iterable[str] | None = None) -> list[list[str]]:
    """The modules, or those of `paths`, by signature."""
    found: dict[Signature, list[str]] = {}
    for path in stacks if paths is None else paths:
        found.setdefault(signature(stacks[path]), []).append(path)
    return list(found.values())


def scales(stack: Sequence[Factors]) -> np.ndarray:
    """`[n]`, float64."""
    return np.array([factors.scale for factors in stack])


def widest_dtype(stacks: Stacks) -> np.dtype:
    """The narrowest float dtype that holds every factor."""
    dtypes = {x.dtype for stack in stacks.values() for f in stack for x in (f.a, f.b)}
    return functools.reduce(jnp.promote_types, dtypes)


def concatenated(
    stack: Sequence[Factors], gains: np.ndarray, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, float]:
    """The exact sum of gain-weighted deltas: A's stacked over B's side by side.

    The largest gain becomes the scale, so that factors of equal gain are copied bit for bit in any
    dtype; PEFT's `cat` multiplies every A by its gain instead.

    Args:
        stack: The factors of n adapters.
        gains: `[n]`, beside the scales.
        dtype: Of the result.

    Returns:
        (a, b, scale) of the sum.
    """
    wide = compute_dtype()
    gains = gains * scales(stack)
    scale = gains[np.argmax(np.abs(gains))] or 1.0
    scaled_b = [f.b.astype(wide) * wide.type(g / scale) for f, g in zip(stack, gains, strict=True)]
    a = np.concatenate([factors.a.astype(dtype) for factors in stack], axis=0)
    b = np.concatenate(scaled_b, axis=1).astype(dtype)
    return a, b, float(scale)
