"""Consensus: how the adapters' coordinates become one.

A consensus sees the coordinates of one module, one array for each of n adapters, and their weights
`[n]`. A new one is a function of that form and a line in `CONSENSUS`.

Sums over adapters are written out term by term: XLA then runs one pass over the entries, where its
CPU code for a reduction over a short leading axis takes some fifty times as long.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from langmerge_jax.merging.sparsify import Parts


class Vote(NamedTuple):
    """How a TIES consensus elects and divides.

    Attributes:
        sign: `total`, the sign of the sum of values, or `frequency`, of the sum of signs.
        election: `weighted`, or `unweighted`: every adapter's say is the same.
        divisor: Of the agreeing sum: their `weights`, their `count`, or `none`.
    """

    sign: str = "total"
    election: str = "weighted"
    divisor: str = "weights"


PLAIN_VOTE = Vote()


def weighted_sum(x: Parts, weights: jax.Array) -> jax.Array:
    """sum_i w_i x_i: task arithmetic (Ilharco et al., arXiv 2212.04089)."""
    return _sum(w * v for w, v in zip(weights, x, strict=True))


def mean(x: Parts, weights: jax.Array) -> jax.Array:
    """sum_i w_i x_i / sum_i w_i: a model soup (Wortsman et al., arXiv 2203.05482)."""
    return weighted_sum(x, weights) / _sum(weights)


def totals(x: Parts, weights: jax.Array, vote: Vote) -> jax.Array:
    """The sum over adapters whose sign is elected."""
    if vote.sign == "frequency":
        x = [jnp.sign(v) for v in x]
    return weighted_sum(x, weights) if vote.election == "weighted" else _sum(x)


def ties(
    x: Parts, weights: jax.Array, vote: Vote = PLAIN_VOTE, zero_sign: jax.Array | float = 1.0
) -> jax.Array:
    """Elects a sign for each entry and averages the adapters that agree with it.

    By default the sign is that of sum_i w_i x_i, and the mean of the agreeing entries is weighted
    by w_i, as in mergekit's `ties`. Zeros agree with no sign. An entry on which none agrees is
    zero. The paper and PEFT elect without weights and divide by the count of the agreeing; all
    are the same where the weights are equal.

    Args:
        x: n arrays of one shape, or `[n, ...]`.
        weights: `[n]`.
        vote: Another election or divisor.
        zero_sign: The sign elected where the sum is zero, 1 or -1.

    References:
        Yadav et al., TIES-Merging (arXiv 2306.01708), section 4, steps 2 and 3;
        `peft.utils.merge_utils.ties` for sign, election and divisor.
    """
    total = totals(x, weights, vote)
    sign = jnp.where(total == 0, jnp.asarray(zero_sign, total.dtype), jnp.sign(total))
    pairs = list(zip(weights, x, strict=True))
    if vote.election == "weighted":
        # Under a negative weight an entry speaks for the other sign, as in mergekit.
        agreeing = [(w, v, jnp.sign(w) * jnp.sign(v) == sign) for w, v in pairs]
    else:
        agreeing = [(w, v, jnp.sign(v) == sign) for w, v in pairs]
    merged = _sum(jnp.where(agrees, w * v, 0) for w, v, agrees in agreeing)
    if vote.divisor == "none":
        return merged
    if vote.divisor == "count":
        share = _sum(agrees.astype(total.dtype) for _, v, agrees in agreeing)
    else:
        share = _sum(jnp.where(agrees, w, 0) for w, v, agrees in agreeing)
    return merged / jnp.where(share == 0, 1, share)


def sce(x: Parts, weights: jax.Array, entries: jax.Array) -> jax.Array:
    """Elects signs without weights, and weighs the agreeing by their adapter's mean square.

    Args:
        x: n arrays of one shape, perhaps padded with zeros.
        weights: `[n]`.
        entries: Scalar, how many of an array's entries are no padding.

    References:
        Wan et al., FuseChat (arXiv 2408.07990), section 3.2, "calculate" and "erase".
    """
    energies = _mean_squares(x, entries)
    shares = energies / jnp.where(_sum(energies) == 0, 1, _sum(energies))
    return ties(x, weights * shares, Vote(election="unweighted"))


def sce_mergekit(x: Parts, weights: jax.Array, entries: jax.Array) -> jax.Array:
    """As `sce`, but weighs adapters alike where the sum of their mean squares is below 1e-6.

    References:
        mergekit's `sce_weight`, from 0.1.5. The mean squares of LoRA deltas are that small.
    """
    energies = _mean_squares(x, entries)
    total = _sum(energies)
    shares = jnp.where(total < 1e-6, 1 / len(energies), energies / jnp.maximum(total, 1e-6))
    return ties(x, weights * shares, Vote(election="unweighted"))


def _mean_squares(x: Parts, entries: jax.Array) -> jax.Array:
    return jnp.stack([jnp.sum(jnp.sum(jnp.square(v), axis=-1)) for v in x]) / entries


@dataclasses.dataclass(frozen=True)
class Consensus:
    """A way to combine, and what the weights mean to it.

    Attributes:
        combine: From n arrays of coordinates and weights `[n]` to one array.
        relative: Whether weights are relative importance, not negative and the same when all are
            doubled; otherwise they are gains of either sign.
        needs: What else `combine` takes: `vote`, `zero_sign`, `entries`.
    """

    combine: Callable[..., jax.Array]
    relative: bool
    needs: tuple[str, ...] = ()


CONSENSUS: dict[str, Consensus] = {
    "sum": Consensus(weighted_sum, relative=False),
    "mean": Consensus(mean, relative=True),
    "ties": Consensus(ties, relative=True, needs=("vote", "zero_sign")),
    "sce": Consensus(sce, relative=True, needs=("entries",)),
    "sce_mergekit": Consensus(sce_mergekit, relative=True, needs=("entries",)),
}


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, terms)
