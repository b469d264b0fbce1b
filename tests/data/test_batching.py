"""Batches hold every row once an epoch, like lengths together, and repeat."""

import numpy as np
import pytest

from langmerge_jax.data.batching import bucket, training_batches
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.errors import InputError


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own():
    data = [Encoded((i,), (0,)) for i in range(11)]
    batches = list(training_batches(data, rows=4, epochs=3, seed=0, name="en"))
    assert [sorted(map(len, batches[i : i + 3])) for i in (0, 3, 6)] == [[3, 4, 4]] * 3
    epochs = [[e for batch in batches[i : i + 3] for e in batch] for i in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(e.prompt for e in epoch) == [(i,) for i in range(11)]
    assert epochs[0] != epochs[1]
    assert batches == list(training_batches(data, rows=4, epochs=3, seed=0, name="en"))
    assert batches != list(training_batches(data, rows=4, epochs=3, seed=0, name="de"))


def test_rows_of_similar_length_share_a_batch_and_adapters_are_long_together():
    rng = np.random.default_rng(0)
    lengths = {}
    for name in ("en", "de"):
        data = [Encoded((0,) * n, (0,)) for n in rng.integers(1, 100, 640)]
        batches = list(training_batches(data, rows=8, epochs=1, seed=0, name=name))
        lengths[name] = [max(map(len, batch)) for batch in batches]
        assert sum(lengths[name]) * 8 < 1.1 * sum(map(len, data))
        assert lengths[name] != sorted(lengths[name])
    assert np.corrcoef(lengths["en"], lengths["de"])[0, 1] > 0.95


def test_the_smallest_bucket_that_holds_a_row_is_taken():
    assert [bucket(n, (64, 16, 32)) for n in (1, 16, 17, 64)] == [16, 16, 32, 64]
    with pytest.raises(InputError, match=r"65 tokens fit no length bucket of \(64, 16, 32\)"):
        bucket(65, (64, 16, 32))
