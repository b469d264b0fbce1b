"""Encoded examples become arrays of a few fixed shapes."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from langmerge_jax.data.encoding import Encoded
from langmerge_jax.errors import InputError


def bucket(length: int, buckets: Sequence[int]) -> int:
    """Returns the smallest bucket that holds `length` tokens.

    Raises:
      InputError: if none does.
    """
    for size in sorted(buckets):
        if length <= size:
            return size
    raise InputError(f"{length} tokens fit no length bucket of {tuple(buckets)}; add a longer one")


def pack(examples: Sequence[Encoded], length: int) -> list[list[Encoded]]:
    """Shares examples out to rows of `length` tokens: the longest first, each to the first row
    that has room for it.

    Args:
      examples: each of at most `length` tokens.

    References: Johnson 1973 (first-fit decreasing).
    """
    rows: list[list[Encoded]] = []
    room: list[int] = []
    for example in sorted(examples, key=len, reverse=True):
        first = next((i for i, free in enumerate(room) if len(example) <= free), len(rows))
        if first == len(rows):
            rows.append([])
            room.append(length)
        rows[first].append(example)
        room[first] -= len(example)
    return rows


def pad(
    groups: Sequence[Sequence[Sequence[Encoded]]],
    length: int,
    targets: int,
    rows: int,
    *,
    whole: bool = False,
    packed: bool = False,
) -> dict[str, np.ndarray]:
    """Lays rows out as arrays; each group is to use one adapter.

    Args:
      groups: g lists of at most `rows` rows, each of one example, or with `packed` of several;
        missing rows have weight zero.
      length: s.
      targets: t, at least the tokens to predict in any row.
      rows: b.
      whole: predict the tokens of the prompts too, all but the first.
      packed: tell what keeps the examples of a row apart.

    Returns:
      tokens: int32 [g, b, s], padded at the end with zeros.
      target_index: int32 [g, b, t], positions whose next token is to be predicted.
      target: int32 [g, b, t], those next tokens.
      weight: float32 [g, b, t], 1 for a real target and 0 for padding.
      segments: with `packed`, int32 [g, b, s], the number of the example in its row from 1; 0 is
        padding.
      positions: with `packed`, int32 [g, b, s], places within the example.
    """
    g = len(groups)
    tokens, segments, positions = np.zeros((3, g, rows, length), np.int32)
    index, target = np.zeros((2, g, rows, targets), np.int32)
    weight = np.zeros((g, rows, targets), np.float32)
    for i, group in enumerate(groups):
        for j, row in enumerate(group):
            at, done = 0, 0  # Tokens and targets so far.
            for number, example in enumerate(row, 1):
                ids = (*example.prompt, *example.answer)
                start = 1 if whole else len(example.prompt)
                end, count = at + len(ids), len(ids) - start
                tokens[i, j, at:end] = ids
                segments[i, j, at:end] = number
                positions[i, j, at:end] = np.arange(len(ids))
                # The token at position p is predicted from the hidden state at p - 1.
                index[i, j, done : done + count] = np.arange(at + start - 1, end - 1)
                target[i, j, done : done + count] = ids[start:]
                weight[i, j, done : done + count] = 1
                at, done = end, done + count
    found = {"tokens": tokens, "target_index": index, "target": target, "weight": weight}
    return found | ({"segments": segments, "positions": positions} if packed else {})


def steps_per_epoch(count: int, rows: int) -> int:
    """Returns how many batches of `rows` an epoch of `count` examples has, the last maybe short."""
    return -(-count // rows)


# Batches that are drawn together and sorted by length among themselves.
_POOL = 32


def training_batches(
    data: Sequence[Encoded], *, rows: int, epochs: int, seed: int, name: str
) -> Iterator[list[Encoded]]:
    """Yields the batches of all epochs of one adapter, in order.

    Rows of similar length share a batch: an epoch's random order is cut into pools of 32 batches,
    each pool sorted by length, cut into batches, and these put into random order again. That last
    order does not depend on `name`, so adapters trained side by side have their long batches in
    the same steps. Everything else is a function of (seed, name, epoch).
    """
    for epoch in range(epochs):
        order = _generator(seed, name, epoch).permutation(len(data))
        for pool, start in enumerate(range(0, len(data), rows * _POOL)):
            drawn = sorted(order[start : start + rows * _POOL], key=lambda i: len(data[i]))
            batches = [drawn[i : i + rows] for i in range(0, len(drawn), rows)]
            for i in _generator(seed, epoch, pool).permutation(len(batches)):
                yield [data[j] for j in batches[i]]


def _generator(*of: object) -> np.random.Generator:
    digest = hashlib.sha256("/".join(map(str, of)).encode()).digest()
    return np.random.default_rng(list(digest))
