"""Spaces: the coordinates in which a merge is elementwise, and the way there and back.

A space projects the factors of one module to coordinate arrays `[n, ...]`, n adapters, and lifts
the combined arrays back to factors. Sparsifiers and consensus know nothing of it. A new space is a
`project`, a `lift` and a line in `SPACES`.

Axes: n adapters, o out, i in, r rank of one adapter, k kept singular directions.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# On TPU and GPU the default precision of a float32 product is less than float32, and a merge
# decides by signs and order.
_PRECISION = lax.Precision.HIGHEST

# The official KnOTS code drops singular values up to this, absolute.
_KNOTS_ABSOLUTE_TOLERANCE = 1e-5


Pair = tuple[np.ndarray, np.ndarray]


class Stack(NamedTuple):
    """Factors of one module of n adapters, in the dtype of the computation.

    Attributes:
        a: n arrays `[r_i, i]`; ranks may differ.
        b: n arrays `[o, r_i]`.
        scale: `[n]`.
    """

    a: tuple[jax.Array, ...]
    b: tuple[jax.Array, ...]
    scale: jax.Array


class Coordinates(NamedTuple):
    """A module of n adapters in a space.

    Attributes:
        parts: Arrays `[n, rows, columns]` to be sparsified and combined each on its own.
        live: For each part an int32 scalar, how many of its rows count for a trim; the rows after
            those are zero by construction.
        frame: What `Space.lift` needs beside the combined parts.
    """

    parts: tuple[jax.Array, ...]
    live: tuple[jax.Array, ...]
    frame: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Space:
    """A space of coordinates.

    Attributes:
        project: From the factors of one module to its coordinates; traced.
        weights: From weights `[n]` and scales `[n]` to the weights `[n]` of each part.
        lift: From the combined parts and the frame of one module to `(a, b)` of scale 1, in
            numpy; None where the one part is the dense delta itself. lambda is already in the last
            part.
        equal_ranks: Whether all adapters must have one rank in a module.
    """

    project: Callable[[Stack], Coordinates]
    weights: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]
    lift: Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], Pair] | None
    equal_ranks: bool = False


def _all_live(*parts: jax.Array) -> Coordinates:
    return Coordinates(parts, tuple(jnp.asarray(x.shape[1], jnp.int32) for x in parts), ())


def _project_delta(stack: Stack) -> Coordinates:
    """Task vectors `scale * B @ A`, `[n, o, i]`."""
    deltas = [
        jnp.matmul(b * scale, a, precision=_PRECISION)
        for a, b, scale in zip(stack.a, stack.b, stack.scale, strict=True)
    ]
    return _all_live(jnp.stack(deltas))


def _project_factor(stack: Stack) -> Coordinates:
    """A `[n, r, i]` and B `[n, o, r]` apart; scales enter with the weights, as in PEFT."""
    return _all_live(jnp.stack(stack.a), jnp.stack(stack.b))


def _project_knots(stack: Stack) -> Coordinates:
    """Each adapter's S V in the left singular basis that all task vectors share, `[n, k, i]`.

    For X = [D_1 | ... | D_n] = U S V (D_i = scale_i B_i A_i, side by side along the inputs) the
    coordinates of adapter i are the columns of S V that belong to it. X is never built: with
    [scale_1 B_1 | ... | scale_n B_n] = Q_b R_b and A_i^T = Q_i R_i, X = Q_b C blockdiag(Q_i)^T
    for the small core C = [R_b1 R_1^T | ... | R_bn R_n^T]; as Q_b and the Q_i are orthonormal,
    the SVD of C is that of X.

    Singular values up to 1e-5, as in the official code, or up to width(C) * eps * s_max are
    noise: the latter is the error that the QRs and the SVD make in the working precision
    (`numpy.linalg.matrix_rank` takes the same bound). Their directions become zero and do not
    count for a trim. In float64 the relative bound is far below 1e-5 for any usual adapter.

    References:
        Stoica et al., KnOTS (arXiv 2410.19735). The official code merges S V, as here, but takes
        B A without the scale and trims over all modules at once.
    """
    # Adapters of one rank go through each step together: [g, ...] for the g of them.
    ranks = [a.shape[0] for a in stack.a]
    groups = [[j for j, r in enumerate(ranks) if r == rank] for rank in dict.fromkeys(ranks)]
    scaled_b = [jnp.stack([stack.b[j] * stack.scale[j] for j in group], axis=1) for group in groups]
    columns = [b.reshape(b.shape[0], -1) for b in scaled_b]  # [o, g * r]
    q_b, r_b = jnp.linalg.qr(jnp.concatenate(columns, axis=1))

    blocks, bases = [], []
    for group, block in zip(groups, _split(r_b, columns), strict=True):
        q, r = jnp.linalg.qr(jnp.stack([stack.a[j].T for j in group]))  # q [g, i, q], r [g, q, r]
        block = block.reshape(block.shape[0], len(group), -1)
        product = jnp.einsum("pgr,gqr->pgq", block, r, precision=_PRECISION)
        blocks.append(product.reshape(product.shape[0], -1))
        bases.append(q)
    core = jnp.concatenate(blocks, axis=1)
    p, s, vh = jnp.linalg.svd(core, full_matrices=False)  # s [k]

    noise = core.shape[1] * jnp.finfo(s.dtype).eps * s[0]
    kept = s > jnp.maximum(_KNOTS_ABSOLUTE_TOLERANCE, noise)
    live = jnp.sum(kept, dtype=jnp.int32)  # s falls, so the kept rows come first
    sv = jnp.where(kept, s, 0)[:, None] * vh
    coordinates = [
        jnp.einsum("kgq,giq->gki", block.reshape(-1, *q.shape[::2]), q, precision=_PRECISION)
        for block, q in zip(_split(sv, blocks), bases, strict=True)
    ]
    in_order = np.argsort(np.concatenate(groups))
    basis = jnp.matmul(q_b, p, precision=_PRECISION)  # [o, k]
    return Coordinates((jnp.concatenate(coordinates)[in_order],), (live,), (basis,))


def _split(x: jax.Array, widths: Sequence[jax.Array]) -> list[jax.Array]:
    """The columns of `x`, shared out as wide as the matrices in `widths`."""
    return jnp.split(x, np.cumsum([w.shape[1] for w in widths])[:-1], axis=1)


def _lift_knots(parts: Sequence[np.ndarray], frame: Sequence[np.ndarray]) -> Pair:
    """B = U `[o, k]`, A = the combined S V `[k, i]`, without directions that came out zero."""
    (a,), (b,) = parts, frame
    directions = np.flatnonzero(a.any(axis=1))
    if directions.size == 0:
        return np.zeros_like(a[:1]), np.zeros_like(b[:, :1])
    return a[directions], b[:, directions]


def _factor_weights(weights: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, ...]:
    """sqrt|w s| on either factor, the sign on A alone, as in PEFT 0.21 (0.18 has another rule for
    negative weights)."""
    gains = weights * scales
    root = np.sqrt(np.abs(gains))
    return np.where(gains < 0, -root, root), root


def _plain_weights(weights: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, ...]:
    del scales  # The coordinates hold them already.
    return (weights,)


SPACES: dict[str, Space] = {
    "delta": Space(
        project=_project_delta,
        weights=_plain_weights,
        lift=None,
    ),
    "factor": Space(
        project=_project_factor,
        weights=_factor_weights,
        lift=lambda parts, frame: (parts[0], parts[1]),
        equal_ranks=True,
    ),
    "knots": Space(
        project=_project_knots,
        weights=_plain_weights,
        lift=_lift_knots,
    ),
}
