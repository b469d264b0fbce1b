"""Exact selection of the largest magnitudes, for any count, inside one compiled program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_LANES = 128  # Entries are counted by rows of this many; at most 255, for counts in bytes.
_SAMPLE = 2**12  # Entries whose order says where to look first.


class Cut(NamedTuple):
    """Which entries are among the largest, told by their bits and position alone.

    An entry is kept if its bits are at least `above`, or if they are `tied` and its row-major
    position is at most `last`.

    Attributes:
        above, tied: Scalars, bit patterns of magnitudes (uint32, or uint64 for float64).
        last: int32 scalar; -1 where no tie is to be broken.
    """

    above: jax.Array
    tied: jax.Array
    last: jax.Array


def magnitude_bits(x: jax.Array) -> jax.Array:
    """The bit patterns of |x|, unsigned integers in the same order as the magnitudes."""
    unsigned = {4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
    return lax.bitcast_convert_type(jnp.abs(x), unsigned)


def largest(x: jax.Array, k: jax.Array) -> Cut:
    """Finds the cut that keeps exactly the `k` entries of largest magnitude.

    Entries of equal magnitude at the cut are taken in row-major order, so the result is defined in
    full; `torch.topk` and `numpy.argsort` leave that choice open.

    Args:
        x: Floats of 32 or 64 bits, any shape of less than 2**31 - 2**7 entries, no NaN.
        k: Integer scalar, traced or not, in [0, x.size].

    Returns:
        The cut; see `kept`.
    """
    k = jnp.asarray(k, jnp.int32)
    bits = _rows(magnitude_bits(x))
    low, high, reach_low, reach_high = _bracket(bits, k)
    # Where exactly k reach a bound, that bound alone says it.
    exact = jnp.where(reach_high == k, high, low)
    broken = (reach_high != k) & (reach_low != k)
    last = lax.cond(
        broken,
        lambda: _position(bits == low, k - reach_high),
        lambda: jnp.asarray(-1, jnp.int32),
    )
    return Cut(jnp.where(broken, high, exact), low, last)


def at_least(x: jax.Array, k: jax.Array) -> Cut:
    """Finds the cut that keeps the `k` largest magnitudes and all that equal the last of them.

    Args:
        x: As for `largest`.
        k: Integer scalar in [1, x.size].
    """
    k = jnp.asarray(k, jnp.int32)
    bits = _rows(magnitude_bits(x))
    low, high, _, reach_high = _bracket(bits, k)
    return Cut(jnp.where(reach_high == k, high, low), low, jnp.asarray(-1, jnp.int32))


def tied(x: jax.Array, threshold: jax.Array, room: jax.Array) -> Cut:
    """The cut that keeps what exceeds `threshold`, and the first `room` entries that equal it.

    Args:
        x: As for `largest`.
        threshold: Scalar, a bit pattern of a magnitude.
        room: int32 scalar; more than there are keeps all of them.
    """
    bits = _rows(magnitude_bits(x))
    last = jnp.where(room > 0, _position(bits == threshold, room), -1)
    return Cut(threshold + 1, threshold, last)


def kept(x: jax.Array, cut: Cut) -> jax.Array:
    """The mask of the entries that a cut keeps, of the shape of `x`."""
    bits = magnitude_bits(x)
    position = lax.iota(jnp.int32, x.size).reshape(x.shape)
    return (bits >= cut.above) | ((bits == cut.tied) & (position <= cut.last))


def _rows(bits: jax.Array) -> jax.Array:
    """`[rows, _LANES]`, padded with zeros: they come last, and are never taken before an entry."""
    return jnp.pad(bits.reshape(-1), (0, -bits.size % _LANES)).reshape(-1, _LANES)


def _row_counts(mask: jax.Array) -> jax.Array:
    """How many entries of each row of `[rows, _LANES]` are true, int32.

    Counted in bytes: XLA's CPU code for one sum over everything takes several times as long.
    """
    return jnp.sum(mask, axis=1, dtype=jnp.uint8).astype(jnp.int32)


def _reach(bits: jax.Array, pivot: jax.Array) -> jax.Array:
    """How many of `bits` are at least `pivot`, int32."""
    return jnp.sum(_row_counts(bits >= pivot), dtype=jnp.int32)


def _bracket(bits: jax.Array, k: jax.Array):
    """Narrows [low, high) around the k-th largest of `bits`.

    At least k reach `low` and at most k reach `high`; either exactly k reach one of them, or
    high = low + 1. A pass over the entries counts how many reach a pivot. The first pivots come
    from a sample, the next from where the k-th would lie if entries were spread evenly between the
    bounds; every third halves the bracket, which bounds the number of passes for any input.

    Returns:
        (low, high, how many reach low, how many reach high).
    """
    unsigned, size = bits.dtype, bits.size
    stride = max(1, size // _SAMPLE)
    sample = jnp.sort(bits.reshape(-1)[::stride])
    place = sample.shape[0] - k.astype(jnp.float32) / size * sample.shape[0]
    # Three standard deviations of a sampled quantile at most.
    margin = 1.5 * sample.shape[0] ** 0.5

    def sampled(offset):
        index = jnp.clip((place + offset).astype(jnp.int32), 0, sample.shape[0] - 1)
        return sample[index]

    def searching(state):
        _, low, high, reach_low, reach_high = state
        return (high - low > 1) & (reach_low != k) & (reach_high != k)

    def narrow(state):
        step, low, high, reach_low, reach_high = state
        between = (reach_low - reach_high).astype(jnp.float32)
        # Aimed to one side of the k-th and the other in turn, so that both bounds close in.
        aim = (reach_low - k).astype(jnp.float32)
        aim = aim + jnp.where(step % 3 == 0, -1.0, 1.0) * (jnp.sqrt(between) + 0.01 * aim)
        share = jnp.clip(aim / between, 0.0, 1.0)
        # A float32 share of a wide bracket is coarse and may round up to the bracket itself.
        width = high - low
        even = low + jnp.minimum((share * width.astype(jnp.float32)).astype(unsigned), width)
        pivot = jnp.where(step % 3 == 2, low + width // 2, even)
        pivot = jnp.where(step == 0, sampled(-margin), jnp.where(step == 1, sampled(margin), pivot))
        pivot = jnp.clip(pivot, low + 1, high - 1)
        reach = _reach(bits, pivot)
        enough = reach >= k
        return (
            step + 1,
            jnp.where(enough, pivot, low),
            jnp.where(enough, high, pivot),
            jnp.where(enough, reach, reach_low),
            jnp.where(enough, reach_high, reach),
        )

    # All reach 0 and none reaches max + 1, for which the sign bit that abs cleared leaves room.
    start = (
        jnp.zeros((), jnp.int32),
        jnp.zeros((), unsigned),
        jnp.max(bits) + 1,
        jnp.asarray(size, jnp.int32),
        jnp.zeros((), jnp.int32),
    )
    return lax.while_loop(searching, narrow, start)[1:]


def _position(mask: jax.Array, count: jax.Array) -> jax.Array:
    """The row-major position of the `count`-th true entry of `[rows, _LANES]`, or the last."""
    in_row = _row_counts(mask)
    through = jnp.cumsum(in_row, dtype=jnp.int32)
    at = jnp.minimum(jnp.sum(through < count, dtype=jnp.int32), mask.shape[0] - 1)
    room = count - (through[at] - in_row[at])
    lane = jnp.sum(jnp.cumsum(mask[at], dtype=jnp.int32) < room, dtype=jnp.int32)
    return at * _LANES + jnp.minimum(lane, _LANES - 1)
