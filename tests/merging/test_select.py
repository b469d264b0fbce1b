import jax
import jax.numpy as jnp
import merge_references
import numpy as np
import pytest

from langmerge_jax.merging import select


@jax.jit
def keep_largest(x, k):
    return jnp.where(select.kept(x, select.largest(x, k)), x, 0)


@jax.jit
def keep_at_least(x, k):
    return jnp.where(select.kept(x, select.at_least(x, k)), x, 0)


SCALES = 10.0 ** np.linspace(-37, 37, 257)
SAMPLES = {
    "random": np.random.default_rng(0).normal(size=257),
    "tied": np.random.default_rng(1).integers(-3, 4, size=257) / 2,
    "zeros": np.zeros(257),
    "mostly zeros": np.where(np.arange(257) % 50 == 7, -1.5, -0.0),
    "tiny and huge": np.random.default_rng(2).normal(size=257) * SCALES,
    "equal": np.full(257, -0.1),
}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("sample", SAMPLES)
def test_exactly_k_entries_are_kept_and_the_first_of_equal_ones(sample, bits):
    with jax.enable_x64(bits == 64):
        x = SAMPLES[sample].astype(f"f{bits // 8}")
        for k in (0, 1, 2, 3, 100, 101, 255, 256, 257):
            kept = np.asarray(keep_largest(x, k))
            assert kept.dtype == x.dtype
            np.testing.assert_array_equal(kept, merge_references.trim(x, k).astype(x.dtype))
        assert kept.tobytes() == x.tobytes()  # k = N is the identity, signs of zeros included


def test_the_count_is_exact_for_every_k_under_ties():
    x = np.random.default_rng(3).integers(1, 4, size=(5, 7)).astype(np.float32)
    for k in range(x.size + 1):
        assert np.count_nonzero(keep_largest(x, k)) == k


@pytest.mark.parametrize("sample", SAMPLES)
def test_at_least_keeps_all_that_equal_the_last_one(sample):
    x = SAMPLES[sample].astype(np.float32)
    ordered = np.sort(np.abs(x))[::-1]
    for k in (1, 2, 3, 100, 101, 255, 256, 257):
        kept = np.asarray(keep_at_least(x, k))
        np.testing.assert_array_equal(kept, np.where(np.abs(x) >= ordered[k - 1], x, 0))


@pytest.mark.parametrize("room", [0, 1, 2, 40, 10**6])
def test_ties_with_a_threshold_from_elsewhere_are_kept_in_order(room):
    x = np.random.default_rng(4).integers(-3, 4, size=(9, 31)).astype(np.float32)
    threshold = np.float32(2).view(np.uint32)
    kept = np.asarray(select.kept(x, select.tied(x, threshold, room)))
    equal = np.flatnonzero(np.abs(x).ravel() == 2)[:room]
    expected = np.abs(x).ravel() > 2
    expected[equal] = True
    np.testing.assert_array_equal(kept.ravel(), expected)


@pytest.mark.parametrize("size", [2**17 + 5, 2**20])
@pytest.mark.parametrize("power", [1, 9])
def test_a_large_selection_is_exact_and_few_passes_suffice(size, power):
    x = (np.random.default_rng(5).normal(size=size) ** power).astype(np.float32)
    for density in (0.9, 0.5, 0.013):
        k = int(density * size)
        kept = np.asarray(keep_largest(x, k))
        np.testing.assert_array_equal(kept, merge_references.trim(x, k).astype(np.float32))
