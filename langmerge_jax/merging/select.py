"""Exact selection of the largest magnitudes, for any count, inside one compiled program."""

import jax
import jax.numpy as jnp
from jax import lax

_LANES = 128  # Entries are counted by rows of this many; at most 255, for counts in bytes.


def keep_largest(x: jax.Array, k: jax.Array) -> jax.Array:
    """Zeroes all but exactly `k` entries of `x`, those of largest magnitude.

    Entries of equal magnitude at the threshold are taken in row-major order, so the result is
    defined in full; `torch.topk` and `numpy.argsort` leave that choice open. The official TIES
    code keeps `k + 1` and every tie (`topk_values_mask`).

    Args:
        x: Floats of 32 or 64 bits, any shape of less than 2**31 - 2**7 entries, no NaN.
        k: Integer scalar, traced or not, in [0, x.size].

    Returns:
        `x` with x.size - k entries set to zero; at k = x.size it is `x` bit for bit.
    """
    k = jnp.asarray(k, jnp.int32)
    # Padding has magnitude zero and comes last, so it is never taken before a real entry.
    bits = jnp.pad(_magnitude_bits(x).reshape(-1), (0, -x.size % _LANES)).reshape(-1, _LANES)
    threshold = _threshold(bits, k)
    above = bits > threshold
    tied = bits == threshold
    keep = above | _first(tied, k - jnp.sum(_row_counts(above), dtype=jnp.int32))
    return jnp.where(keep.reshape(-1)[: x.size].reshape(x.shape), x, 0)


def _magnitude_bits(x: jax.Array) -> jax.Array:
    """The bit patterns of |x|, unsigned integers in the same order as the magnitudes."""
    unsigned = {4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
    return lax.bitcast_convert_type(jnp.abs(x), unsigned)


def _row_counts(mask: jax.Array) -> jax.Array:
    """How many entries of each row of `[rows, _LANES]` are true, int32.

    Counted in bytes: XLA's CPU code for one sum over everything takes several times as long.
    """
    return jnp.sum(mask, axis=1, dtype=jnp.uint8).astype(jnp.int32)


def _threshold(bits: jax.Array, k: jax.Array) -> jax.Array:
    """The largest t that at least `k` of `bits` reach, or one that exactly `k` reach.

    By bisection, which may end at the latter since it selects the same entries.
    """

    def searching(state):
        low, high, reached = state
        return (high - low > 1) & (reached != k)

    def halve(state):
        low, high, reached = state
        middle = low + (high - low) // 2
        count = jnp.sum(_row_counts(bits >= middle), dtype=jnp.int32)
        enough = count >= k
        return (
            jnp.where(enough, middle, low),
            jnp.where(enough, high, middle),
            jnp.where(enough, count, reached),
        )

    # All reach 0 and none reaches max + 1, for which the sign bit that abs cleared leaves room.
    low = jnp.zeros((), bits.dtype)
    reached = jnp.asarray(bits.size, jnp.int32)
    return lax.while_loop(searching, halve, (low, jnp.max(bits) + 1, reached))[0]


def _first(mask: jax.Array, count: jax.Array) -> jax.Array:
    """The first `count` true entries of `[rows, _LANES]`, in row-major order."""
    in_row = _row_counts(mask)
    through = jnp.cumsum(in_row, dtype=jnp.int32)
    # All rows before `partial` are taken whole, and those after it not at all.
    partial = jnp.sum(through <= count, dtype=jnp.int32)
    rows = jnp.arange(mask.shape[0], dtype=jnp.int32)
    at = jnp.minimum(partial, mask.shape[0] - 1)
    room = count - (through[at] - in_row[at])
    lanes = jnp.cumsum(mask[at], dtype=jnp.int32) <= room
    return mask & ((rows < partial)[:, None] | ((rows == partial)[:, None] & lanes))
