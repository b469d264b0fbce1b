"""What a merge must know of all modules together before it can merge the first.

Modules are streamed, not held: a pass projects each of them anew. The k-th largest magnitude of an
adapter over all modules is found exactly from counts of its bit pattern, 16 bits a pass (a radix
selection), so two passes in float32; a third settles which of equal entries are kept, and another
finds the commoner sign, where a recipe asks for them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from langmerge_jax.adapters import natural_order

_DIGIT = 16  # Bits found in a pass.


@dataclasses.dataclass(frozen=True)
class Piece:
    """Modules of one signature and their coordinates.

    Attributes:
        modules: m paths.
        x: `[m', n, rows, columns]`, m' >= m; the rest repeats the last module.
        entries: How many entries of each module count for a density, `[m']`.
    """

    modules: Sequence[str]
    x: jax.Array
    entries: np.ndarray


Pass = Callable[[], Iterator[Piece]]


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The trim over all modules.

    Attributes:
        bits: `[n]`, the bit pattern of the smallest magnitude that is kept of each adapter.
        room: By module `[n]` int32, how many entries that equal it are kept.
    """

    bits: np.ndarray
    room: dict[str, np.ndarray]


def thresholds(read: Pass, density: float, with_ties: bool) -> Thresholds:
    """Finds the trim that keeps int(density * N) entries of each adapter, N those of all modules.

    Args:
        read: Streams all modules, each time the same.
        density: In (0, 1).
        with_ties: Keep one entry more, and all that equal the last one kept, as the official code
            does; else exactly that many, those that equal it in the natural order of the module
            paths and of rows and columns.
    """
    entries: dict[str, int] = {}
    prefix = left = digits = None  # [n] the digits found; [n] how many of those with it are kept
    while digits is None or digits > 0:
        counts = None
        for piece in read():
            bits = _bits(piece)
            if counts is None:
                counts = np.zeros((bits.shape[1], 2**_DIGIT), np.int64)
            if prefix is None:
                digits = bits.dtype.itemsize * 8 // _DIGIT
                prefix = np.zeros(bits.shape[1], bits.dtype)
            if left is None:
                entries |= zip(piece.modules, piece.entries.tolist(), strict=False)
            _count(bits, prefix, digits, counts)
        if left is None:
            count = int(density * sum(entries.values())) + with_ties
            left = np.full(prefix.size, count, np.int64)
        digits -= 1
        # Entries from the largest digit down, until as many as are wanted.
        down = np.cumsum(counts[:, ::-1], axis=1)
        at = np.argmax(down >= left[:, None], axis=1)
        above = np.where(at > 0, np.take_along_axis(down, at[:, None] - 1, 1)[:, 0], 0)
        left = left - above
        digit = (2**_DIGIT - 1 - at).astype(prefix.dtype)
        prefix = (prefix << prefix.dtype.type(_DIGIT)) | digit
    # All ones where none is to be kept: without the sign bit, which abs cleared in every entry,
    # still more than any of them, and one may be added to it.
    prefix = np.minimum(prefix, np.iinfo(prefix.dtype).max >> 1)
    if with_ties:
        all_of_them = np.full(prefix.size, np.iinfo(np.int32).max, np.int32)
        return Thresholds(prefix, dict.fromkeys(entries, all_of_them))
    return Thresholds(prefix, _room(read, prefix, left))


def passes(dtype: np.dtype, with_ties: bool) -> int:
    """How many passes `thresholds` makes over coordinates of a dtype."""
    return dtype.itemsize * 8 // _DIGIT + (not with_ties)


def _bits(piece: Piece) -> np.ndarray:
    """The bit patterns of the magnitudes `[m, n, rows, columns]`."""
    x = np.abs(np.asarray(piece.x[: len(piece.modules)]))
    return x.view({4: np.uint32, 8: np.uint64}[x.dtype.itemsize])


def _count(bits: np.ndarray, prefix: np.ndarray, digits: int, counts: np.ndarray) -> None:
    """Adds, for each adapter, how many entries that begin with its prefix have each next digit."""
    shift = bits.dtype.type(_DIGIT * (digits - 1))
    width = bits.dtype.itemsize * 8
    for i, known in enumerate(prefix):
        mine = bits[:, i].reshape(-1)
        if _DIGIT * digits < width:
            mine = mine[mine >> bits.dtype.type(_DIGIT * digits) == known]
        digit = (mine >> shift).astype(np.uint16)
        counts[i] += np.bincount(digit, minlength=2**_DIGIT)


def _room(read: Pass, threshold: np.ndarray, left: np.ndarray) -> dict[str, np.ndarray]:
    """How many entries of each module that equal the threshold are kept."""
    limit = np.iinfo(np.int32).max
    equal = {
        path: tied
        for piece in read()
        for path, tied in zip(
            piece.modules,
            np.sum(_bits(piece) == threshold[:, None, None], axis=(2, 3)),
            strict=True,
        )
    }
    room, taken = {}, np.zeros(threshold.size, np.int64)
    # Not in the order of the stream, which depends on how many devices share the work.
    for path in sorted(equal, key=natural_order):
        room[path] = np.clip(left - taken, 0, limit).astype(np.int32)
        taken = taken + equal[path]
    return room
