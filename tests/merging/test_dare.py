import jax
import merge_references
import numpy as np
import pytest

from langmerge_jax.adapters import Adapter, Factors
from langmerge_jax.merging import merge

MASKS = "delta:dare:sum@0.3"  # of one adapter: its own task vector, dropped and rescaled


@pytest.fixture
def wide():
    """Adapters of task vectors without zeros, large enough to estimate a rate."""
    rng = np.random.default_rng(0)

    def factors():
        a, b = rng.uniform(1, 2, size=(1, 300)), rng.uniform(1, 2, size=(200, 1))
        return Factors(a.astype(np.float32), b.astype(np.float32), 1.0)

    return {name: Adapter({"a": factors(), "b": factors()}) for name in ("en", "ja", "zh")}


def masked(adapters, name, seed=0, path="a"):
    return merge({name: adapters[name]}, MASKS, seed=seed).delta(path)


def test_survivors_are_divided_by_the_density_and_the_rate_is_right(wide):
    delta = masked(wide, "en")
    kept = delta != 0
    expected = merge_references.task_vector(wide["en"].modules["a"]) / 0.3
    np.testing.assert_allclose(delta[kept], expected[kept], rtol=1e-6)
    # Five standard deviations of a binomial rate.
    assert kept.mean() == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / kept.size) ** 0.5)


def test_a_mask_depends_on_seed_adapter_and_module_only(wide):
    first = masked(wide, "en") != 0
    np.testing.assert_array_equal(first, masked(wide, "en") != 0)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(first, masked(wide, "en") != 0)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(first, masked(wide, "en") != 0)
    alone = {"en": Adapter({"a": wide["en"].modules["a"]})}
    np.testing.assert_array_equal(first, masked(alone, "en") != 0)
    others = [masked(wide, "en", seed=1), masked(wide, "ja"), masked(wide, "en", path="b")]
    for other in others:
        agreement = np.mean((other != 0) == first)
        assert agreement == pytest.approx(0.3**2 + 0.7**2, abs=0.02)


def test_dare_ties_elects_over_the_masks_that_each_adapter_draws_alone(make_adapters):
    adapters = make_adapters()
    weights = {"de": 0.5, "en": 2.0, "ja": 1.25}
    merged = merge(adapters, "dare_ties@0.3", weights=weights, seed=3)
    for path in merged.modules:
        dropped = [
            np.where(
                merge({name: adapters[name]}, MASKS, seed=3).delta(path) != 0,
                merge_references.task_vector(adapters[name].modules[path]) / 0.3,
                0,
            )
            for name in sorted(adapters)
        ]
        expected = merge_references.elect_and_merge(dropped, [0.5, 2.0, 1.25])
        atol = 1e-5 * np.abs(dropped).max()
        np.testing.assert_allclose(merged.delta(path), expected, rtol=0, atol=atol)


def test_dare_is_right_on_average_in_the_knots_basis_too(make_adapters, dense):
    adapters = make_adapters(shapes={"a": (24, 20)})
    draws = [dense(merge(adapters, "knots:dare:sum@0.5", seed=seed))["a"] for seed in range(200)]
    mean = np.mean(draws, axis=0)
    expected = sum(merge_references.task_vector(a.modules["a"]) for a in adapters.values())
    error = np.linalg.norm(mean - expected) / np.linalg.norm(expected)
    assert error < 3 / 200**0.5  # one draw errs by about its own norm at density 1/2
