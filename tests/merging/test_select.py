import jax
import merge_references
import numpy as np
import pytest

from langmerge_jax.merging.select import keep_largest

SELECT = jax.jit(keep_largest)
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
            kept = np.asarray(SELECT(x, k))
            assert kept.dtype == x.dtype
            np.testing.assert_array_equal(kept, merge_references.trim(x, k).astype(x.dtype))
        assert kept.tobytes() == x.tobytes()  # k = N is the identity, signs of zeros included


def test_the_count_is_exact_for_every_k_under_ties():
    x = np.random.default_rng(3).integers(1, 4, size=(5, 7)).astype(np.float32)
    for k in range(x.size + 1):
        assert np.count_nonzero(SELECT(x, k)) == k
