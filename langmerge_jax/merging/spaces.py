"""Spaces: the coordinates in which a merge is elementwise, and the way there and back.

A space projects the factors of one module to coordinate arrays `[n, rows, columns]`, n adapters,
and lifts the combined arrays back to factors. Sparsifiers and consensus know nothing of it. A new
space is a `project`, a `lift` and a line in `SPACES`. Both are traced.

Only thin factors and cores as wide as the sum of the ranks are decomposed. In float64, which CPU
and GPU have, the orthonormal basis of a factor comes from the eigenvectors of its Gram matrix: two
products, where a Householder QR takes three times as long on a CPU. That squares the condition
number, but the columns are brought to one length first, and half of float64's digits are still more
than a float32 result holds. In float32, all that a TPU has, it is a QR. The SVD of the core is that
of `jax.numpy.linalg`: LAPACK's divide and conquer on CPU, cuSOLVER's on GPU, QDWH on TPU.

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
PRECISION = lax.Precision.HIGHEST

# The official KnOTS code drops singular values up to this, absolute.
_OFFICIAL_TOLERANCE = 1e-5

Pair = tuple[jax.Array, jax.Array]


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
        live: For each part an int32 scalar, how many of its rows count for a density; the rows
            after those are zero by construction.
        frame: What `Space.lift` needs beside the combined parts.
    """

    parts: tuple[jax.Array, ...]
    live: tuple[jax.Array, ...]
    frame: tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Space:
    """A space of coordinates.

    Attributes:
        project: From the factors of one module to its coordinates.
        weights: From weights `[n]` and scales `[n]` to the weights `[n]` of each part.
        lift: From the combined parts and the frame of one module to `(a, b)` of scale 1; None
            where the one part is the dense delta itself.
        equal_ranks: Whether all adapters must have one rank in a module.
        precise: Whether the projection is computed in float64 where the device has it: singular
            vectors err by eps * s_max / gap, which in float32 moves coordinates of a 4096 x 4096
            module by 1e-4 and 40 in a million of them across the threshold of a trim.
    """

    project: Callable[[Stack], Coordinates]
    weights: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]
    lift: Callable[[Sequence[jax.Array], Sequence[jax.Array]], Pair] | None
    equal_ranks: bool = False
    precise: bool = False


def _all_live(parts: Sequence[jax.Array], frame: Sequence[jax.Array] = ()) -> Coordinates:
    live = tuple(jnp.asarray(x.shape[1], jnp.int32) for x in parts)
    return Coordinates(tuple(parts), live, tuple(frame))


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision=PRECISION)


def _project_delta(stack: Stack) -> Coordinates:
    """Task vectors `scale * B @ A`, `[n, o, i]`."""
    scaled = [b * scale for b, scale in zip(stack.b, stack.scale, strict=True)]
    if len({a.shape for a in stack.a}) == 1:  # One batched product, in place.
        return _all_live([_product(jnp.stack(scaled), jnp.stack(stack.a))])
    return _all_live([jnp.stack([_product(b, a) for b, a in zip(scaled, stack.a, strict=True)])])


def _project_factor(stack: Stack) -> Coordinates:
    """A `[n, r, i]` and B `[n, o, r]` apart; scales enter with the weights, as in PEFT."""
    return _all_live([jnp.stack(stack.a), jnp.stack(stack.b)])


class _Basis:
    """Orthonormal columns Q and R with `columns = Q R`.

    Args:
        columns: `[rows, w]`. Directions that the working precision cannot tell from zero are zero
            in Q and in R.
    """

    def __init__(self, columns: jax.Array):
        if columns.dtype == jnp.float64:
            lengths = jnp.sqrt(jnp.sum(jnp.square(columns), axis=0))
            self._columns = columns / jnp.where(lengths == 0, 1, lengths)
            values, vectors = jnp.linalg.eigh(_product(self._columns.T, self._columns))
            noise = columns.shape[1] * jnp.finfo(values.dtype).eps * values[-1]
            roots = jnp.sqrt(jnp.where(values > noise, values, 0))
            inverse = jnp.where(roots > 0, 1 / jnp.where(roots > 0, roots, 1), 0)
            self._coefficients = vectors * inverse
            self.r = (roots * vectors).T * lengths  # [w, w]
        else:
            self._columns, self.r = jnp.linalg.qr(columns)
            self._coefficients = None

    def times(self, x: jax.Array) -> jax.Array:
        """Q x, for x `[w, k]`."""
        return _product(self._columns, self._inner(x))

    def transposed_times(self, x: jax.Array) -> jax.Array:
        """x Q^T, for x `[k, w]`."""
        return _product(self._inner(x.T).T, self._columns.T)

    def _inner(self, x: jax.Array) -> jax.Array:
        return x if self._coefficients is None else _product(self._coefficients, x)


def _knots_basis(stack: Stack, tolerance: float):
    """The SVD X = U S V of the task vectors side by side, X = [D_1 | ... | D_n].

    X is never built: with [scale_1 B_1 | ... | scale_n B_n] = Q_b R_b and A_i^T = Q_i R_i,
    X = Q_b C blockdiag(Q_i)^T for the small core C = [R_b1 R_1^T | ... | R_bn R_n^T]; as Q_b and
    the Q_i are orthonormal, the SVD of C is that of X.

    Singular values up to width(C) * eps * s_max are noise, as `numpy.linalg.matrix_rank` has it,
    and so are those up to `tolerance`.

    Returns:
        (U `[o, k]`, s `[k]`, kept `[k]`, V `[k, width(C)]` in the basis of C, a function from such
        rows to coordinates `[n, k, i]`).
    """
    scaled = [b * scale for b, scale in zip(stack.b, stack.scale, strict=True)]
    left = _Basis(jnp.concatenate(scaled, axis=1))
    right = [_Basis(a.T) for a in stack.a]
    blocks = [
        _product(block, basis.r.T)
        for block, basis in zip(_split(left.r, scaled), right, strict=True)
    ]
    core = jnp.concatenate(blocks, axis=1)
    p, s, vh = jnp.linalg.svd(core, full_matrices=False)
    # There are no more directions than outputs.
    k = min(stack.b[0].shape[0], s.shape[0])
    p, s, vh = p[:, :k], s[:k], vh[:k]
    noise = core.shape[1] * jnp.finfo(s.dtype).eps * s[0]
    kept = s > jnp.maximum(tolerance, noise)
    # Of an adapter of zeros the SVD leaves rounding noise, which has signs and so would vote.
    present = [
        jnp.any(a != 0) & jnp.any(b != 0) & (scale != 0)
        for a, b, scale in zip(stack.a, stack.b, stack.scale, strict=True)
    ]

    def coordinates(rows: jax.Array) -> jax.Array:
        found = [
            jnp.where(there, basis.transposed_times(block), 0)
            for there, basis, block in zip(present, right, _split(rows, blocks), strict=True)
        ]
        return jnp.stack(found)

    return left.times(p), s, kept, vh, coordinates


def _project_knots(stack: Stack, *, tolerance: float = 0.0) -> Coordinates:
    """Each adapter's S V in the left singular basis that all task vectors share, `[n, k, i]`.

    References:
        Stoica et al., KnOTS (arXiv 2410.19735), as the official code merges; see
        `_project_knots_official` for what else that does.
    """
    u, s, kept, vh, coordinates = _knots_basis(stack, tolerance)
    # s falls, so the kept rows come first.
    live = jnp.sum(kept, dtype=jnp.int32)
    return Coordinates((coordinates(jnp.where(kept, s, 0)[:, None] * vh),), (live,), (u,))


def _project_knots_official(stack: Stack) -> Coordinates:
    """`_project_knots` of B A without the scale, and without singular values up to 1e-5.

    References:
        The KnOTS authors' `LoRAHandler` and `SVDMerger.apply_svd`.
    """
    unscaled = stack._replace(scale=jnp.ones_like(stack.scale))
    return _project_knots(unscaled, tolerance=_OFFICIAL_TOLERANCE)


def _project_knots_v(stack: Stack) -> Coordinates:
    """Each adapter's V in that basis, `[n, k, i]`; S is multiplied to what was combined.

    References:
        KnOTS as its paper writes it (arXiv 2410.19735, section 4); a trim then weighs all
        directions alike, where on S V those of large singular values win.
    """
    u, s, kept, vh, coordinates = _knots_basis(stack, 0.0)
    live = jnp.sum(kept, dtype=jnp.int32)
    return Coordinates((coordinates(kept[:, None] * vh),), (live,), (u, jnp.where(kept, s, 0)))


def _project_core(stack: Stack) -> Coordinates:
    """The cores `scale U_b^T B A V_a`, `[n, k_b, k_a]`, in bases that all adapters share.

    U_b are the left singular vectors of the B's side by side, V_a the right ones of the A's one
    over the other; neither knows the scales, and an adapter whose B is zero still has a say in V_a.

    References:
        Panariello et al., Core Space (arXiv 2509.17786), section 3.
    """
    u_b, r_b = _singular_basis(stack.b)
    u_a, r_a = _singular_basis([a.T for a in stack.a])
    cores = [scale * _product(b, a.T) for scale, b, a in zip(stack.scale, r_b, r_a, strict=True)]
    return _all_live([jnp.stack(cores)], [u_b, u_a])


def _singular_basis(columns: Sequence[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
    """Left singular vectors of matrices side by side, and each matrix in that basis."""
    basis = _Basis(jnp.concatenate(columns, axis=1))
    p, s, _ = jnp.linalg.svd(basis.r, full_matrices=False)
    p = p[:, : min(columns[0].shape[0], s.shape[0])]
    return basis.times(p), [_product(p.T, block) for block in _split(basis.r, columns)]


def _split(x: jax.Array, widths: Sequence[jax.Array]) -> list[jax.Array]:
    """The columns of `x`, shared out as wide as the matrices in `widths`."""
    return jnp.split(x, np.cumsum([w.shape[1] for w in widths])[:-1], axis=1)


def _lift_factor(parts: Sequence[jax.Array], frame: Sequence[jax.Array]) -> Pair:
    del frame
    return parts[0], parts[1]


def _lift_knots(parts: Sequence[jax.Array], frame: Sequence[jax.Array]) -> Pair:
    """A = the combined S V `[k, i]`, B = U `[o, k]`."""
    return parts[0], frame[0]


def _lift_knots_v(parts: Sequence[jax.Array], frame: Sequence[jax.Array]) -> Pair:
    """A = S times the combined V `[k, i]`, B = U `[o, k]`."""
    return frame[1][:, None] * parts[0], frame[0]


def _lift_core(parts: Sequence[jax.Array], frame: Sequence[jax.Array]) -> Pair:
    """A = the combined core in the shared basis of the inputs `[k_b, i]`, B = U_b `[o, k_b]`."""
    return _product(parts[0], frame[1].T), frame[0]


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
    "delta": Space(_project_delta, _plain_weights, lift=None),
    "factor": Space(_project_factor, _factor_weights, _lift_factor, equal_ranks=True),
    "knots": Space(_project_knots, _plain_weights, _lift_knots, precise=True),
    "knots_official": Space(_project_knots_official, _plain_weights, _lift_knots, precise=True),
    "knots_v": Space(_project_knots_v, _plain_weights, _lift_knots_v, precise=True),
    "core": Space(_project_core, _plain_weights, _lift_core, precise=True),
}
