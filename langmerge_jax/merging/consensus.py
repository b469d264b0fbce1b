"""Consensus: how the adapters' coordinates become one.

A consensus sees the coordinates of one module, `[n, ...]` for n adapters, and their weights `[n]`.
A new one is a function of that form and a line in `CONSENSUS`.

Sums over adapters are written out term by term: XLA then runs one pass over the entries, where its
CPU code for a reduction over a short leading axis takes some fifty times as long.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp


def weighted_sum(x: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_i w_i x_i: task arithmetic (Ilharco et al., arXiv 2212.04089)."""
    return _sum(w * v for w, v in zip(weights, x, strict=True))


def ties(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Elects a sign for each entry and averages the adapters that agree with it.

    The sign is that of sum_i w_i x_i, + where the sum is zero; the mean of the agreeing entries is
    weighted by w_i. Zeros agree with no sign. An entry on which none agrees is zero.

    The paper and PEFT elect without weights and divide by the count of the agreeing; the three
    are the same where all weights are equal. mergekit's `ties` is this rule.

    References:
        Yadav et al., TIES-Merging (arXiv 2306.01708), section 4, steps 2 and 3.
    """
    pairs = list(zip(weights, x, strict=True))
    sign = _elected(_sum(w * v for w, v in pairs))
    total = _sum(jnp.where(jnp.sign(v) == sign, w * v, 0) for w, v in pairs)
    share = _sum(jnp.where(jnp.sign(v) == sign, w, 0) for w, v in pairs)
    return total / jnp.where(share == 0, 1, share)


def peft_ties(x: jax.Array, weights: jax.Array) -> jax.Array:
    """PEFT's election: unweighted; weights are gains on what agrees, the divisor is the count.

    References:
        `peft.utils.merge_utils.ties` with majority_sign_method="total".
    """
    pairs = list(zip(weights, x, strict=True))
    sign = _elected(_sum(x))
    total = _sum(jnp.where(jnp.sign(v) == sign, w * v, 0) for w, v in pairs)
    count = _sum((jnp.sign(v) == sign).astype(x.dtype) for v in x)
    return total / jnp.maximum(count, 1)


@dataclasses.dataclass(frozen=True)
class Consensus:
    """A way to combine, and what the weights mean to it.

    Attributes:
        combine: From coordinates `[n, ...]` and weights `[n]` to `[...]`.
        relative: Whether weights are relative importance, positive and the same when all are
            doubled; otherwise they are gains of either sign.
    """

    combine: Callable[[jax.Array, jax.Array], jax.Array]
    relative: bool


CONSENSUS: dict[str, Consensus] = {
    "sum": Consensus(weighted_sum, relative=False),
    "ties": Consensus(ties, relative=True),
    "peft_ties": Consensus(peft_ties, relative=False),
}


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, terms)


def _elected(total: jax.Array) -> jax.Array:
    return jnp.where(total >= 0, 1, -1).astype(total.dtype)
