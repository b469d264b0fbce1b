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
    groups: Sequence[Sequence[Encoded]], length: int, targets: int, rows: int
) -> dict[str, np.ndarray]:
    """Lays rows out as arrays; each group is to use one adapter.

    Args:
      groups: g lists of at most `rows` examples; missing rows have weight zero.
      length: s.
      targets: t, at least the longest answer.
      rows: b.

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
            start, count = len(example.prompt), len(example.answer)
            tokens[i, j, : len(example)] = (*example.prompt, *example.answer)
            # The token at position p is predicted from the hidden state at p - 1.
            index[i, j, :count] = np.arange(start - 1, start + count - 1)
            target[i, j, :count] = example.answer
            weight[i, j, :count] = 1
    return {"tokens": tokens, "target_index": index, "target": target, "weight": weight}


def epoch_order(count: int, *, seed: int, name: str, epoch: int) -> np.ndarray:
    """Returns the order of `count` rows in one epoch, a function of its arguments alone."""
    digest = hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()
    return np.random.default_rng(list(digest)).permutation(count)


def steps_per_epoch(count: int, rows: int) -> int:
    """Returns how many batches of `rows` an epoch of `count` examples has, the last maybe short."""
    return -(-count // rows)


def training_batches(
    data: Sequence[Encoded], *, rows: int, epochs: int, seed: int, name: str
) -> Iterator[list[Encoded]]:
    """Yields the batches of all epochs of one adapter, in order."""
    for epoch in range(epochs):
        order = epoch_order(len(data), seed=seed, name=name, epoch=epoch)
        for start in range(0, len(data), rows):
            yield [data[i] for i in order[start : start + rows]]
