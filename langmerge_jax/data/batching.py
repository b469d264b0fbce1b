"""Encoded examples become arrays of a few fixed shapes."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from langmerge_jax.data.tasks import Encoded
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


def pad(
    groups: Sequence[Sequence[Encoded]],
    length: int,
    targets: int,
    rows: int,
    *,
    whole: bool = False,
) -> dict[str, np.ndarray]:
    """Lays rows out as arrays; each group is to use one adapter.

    Args:
      groups: g lists of at most `rows` examples; missing rows have weight zero.
      length: s.
      targets: t, at least the longest answer; with `whole` at least the longest row less one.
      rows: b.
      whole: predict the tokens of the prompt too, all but the first.

    Returns:
      tokens: int32 [g, b, s], padded at the end with zeros.
      target_index: int32 [g, b, t], positions whose next token is to be predicted.
      target: int32 [g, b, t], those next tokens.
      weight: float32 [g, b, t], 1 for a real target and 0 for padding.
    """
    g = len(groups)
    tokens = np.zeros((g, rows, length), np.int32)
    index, target = np.zeros((2, g, rows, targets), np.int32)
    weight = np.zeros((g, rows, targets), np.float32)
    for i, group in enumerate(groups):
        for j, example in enumerate(group):
            row = (*example.prompt, *example.answer)
            start = 1 if whole else len(example.prompt)
            count = len(row) - start
            tokens[i, j, : len(row)] = row
            # The token at position p is predicted from the hidden state at p - 1.
            index[i, j, :count] = np.arange(start - 1, len(row) - 1)
            target[i, j, :count] = row[start:]
            weight[i, j, :count] = 1
    return {"tokens": tokens, "target_index": index, "target": target, "weight": weight}


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
