"""TIES, DARE and the exact sum on task vectors."""

import jax
import merge_references
import numpy as np
import pytest

from langmerge_jax.adapters import Adapter, Factors
from langmerge_jax.merging import DenseDelta, merge
from langmerge_jax.merging.consensus import ties

WEIGHTS = {"de": 0.5, "en": 2.0, "ja": 1.25}


def task_vectors(adapters, path):
    return [merge_references.task_vector(adapters[name].modules[path]) for name in sorted(adapters)]


def weights_of(adapters, weights):
    return [weights[name] for name in sorted(adapters)]


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-5), (64, 1e-12)])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.21, 0.002])
@pytest.mark.parametrize("weights", [dict.fromkeys(WEIGHTS, 1.0), WEIGHTS], ids=["equal", "mixed"])
def test_ties_is_the_paper_on_task_vectors(make_adapters, dense, density, weights, bits, tolerance):
    adapters = make_adapters(ranks=(2, 4, 3), scales=(2.0, 0.5, 1.0))
    with jax.enable_x64(bits == 64):
        merged = dense(merge(adapters, f"ties@{density}", weights=weights))
    for path, delta in merged.items():
        deltas = task_vectors(adapters, path)
        expected = merge_references.ties(deltas, weights_of(adapters, weights), density)
        np.testing.assert_allclose(delta, expected, rtol=0, atol=tolerance * np.abs(deltas).max())


def test_a_zero_sum_elects_plus_and_zeros_never_agree():
    x = np.array([[1.0, 0.0, -3.0, 0.0], [-1.0, 2.0, -1.0, 0.0], [0.0, 4.0, 1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(ties(x, np.ones(3, np.float32)), [1.0, 3.0, -2.0, 0.0])


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_a_trim_keeps_exactly_the_share_of_entries(make_adapters, density):
    adapters = make_adapters()
    merged = merge({"en": adapters["en"]}, f"ties@{density}")
    for path, (out_features, in_features) in merged.modules.items():
        kept = np.count_nonzero(merged.delta(path))
        assert kept == int(density * out_features * in_features)


@pytest.mark.parametrize("pair", [("ties", "dare_ties"), ("ties_knots", "dare_ties_knots")])
def test_at_density_one_dare_and_trim_are_the_same_bit_for_bit(make_adapters, dense, pair):
    adapters = make_adapters(ranks=(2, 4, 3))
    trimmed, dropped = (dense(merge(adapters, f"{name}@1", weights=WEIGHTS)) for name in pair)
    for path in trimmed:
        assert trimmed[path].tobytes() == dropped[path].tobytes()


@pytest.mark.parametrize("recipe", ["ties@0.5", "dare_ties_knots@0.5", "linear", "peft/ties@0.5"])
def test_the_order_of_adapters_changes_nothing(make_adapters, dense, recipe):
    adapters = make_adapters()
    backwards = dict(reversed(adapters.items()))
    one = dense(merge(adapters, recipe, weights=WEIGHTS))
    other = dense(merge(backwards, recipe, weights=dict(reversed(WEIGHTS.items()))))
    for path in one:
        assert one[path].tobytes() == other[path].tobytes()


@pytest.mark.parametrize("recipe", ["ties@0.5", "dare_ties@0.5", "ties_knots@0.5"])
def test_weights_of_ties_are_relative(make_adapters, dense, recipe):
    adapters = make_adapters()
    doubled = {name: 2 * weight for name, weight in WEIGHTS.items()}
    one = dense(merge(adapters, recipe, weights=WEIGHTS))
    other = dense(merge(adapters, recipe, weights=doubled))
    for path in one:
        np.testing.assert_array_equal(one[path], other[path])


@pytest.mark.parametrize(
    "preset", ["ties@0.5", "dare_ties_knots@0.5", "linear", "peft/linear", "peft/dare_ties@0.5"]
)
def test_lambda_is_a_gain_on_the_merged_delta(make_adapters, dense, preset):
    adapters = make_adapters()
    plain, scaled = dense(merge(adapters, preset)), dense(merge(adapters, f"{preset}*-0.25"))
    for path in plain:
        np.testing.assert_array_equal(scaled[path], -0.25 * plain[path])


@pytest.mark.parametrize("scale", [2.0, 16 / 4**0.5])
@pytest.mark.parametrize("recipe", ["linear", "ties@1", "ties_knots@1", "peft/ties@0.5"])
def test_a_single_adapter_merges_to_itself(make_adapters, dense, recipe, scale):
    """`peft/ties` too: PEFT turns every type into `linear` for one adapter."""
    adapter = make_adapters(scales=(scale, scale, scale))["ja"]
    for path, delta in dense(merge({"ja": adapter}, recipe)).items():
        expected = merge_references.task_vector(adapter.modules[path])
        np.testing.assert_allclose(delta, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_linear_is_the_exact_sum_of_weighted_deltas(make_adapters, dense):
    adapters = make_adapters(ranks=(2, 4, 3), scales=(2.0, 0.5, 1.0), dtype=np.float64)
    gains = {"de": 0.3, "en": -1.7, "ja": 0.0}
    with jax.enable_x64(True):
        merged = merge(adapters, "linear*0.9", weights=gains)
    for path, delta in dense(merged).items():
        expected = 0.9 * sum(
            gains[name] * merge_references.task_vector(adapters[name].modules[path])
            for name in adapters
        )
        np.testing.assert_allclose(delta, expected, rtol=0, atol=1e-13)
        assert merged.modules[path].rank == 2 + 4 + 3


def test_a_sum_of_equal_gains_copies_the_factors_bit_for_bit(make_adapters):
    adapters = make_adapters(dtype=np.float16)
    merged = merge(adapters, "linear", weights=dict.fromkeys(adapters, 0.2))
    for path, factors in merged.modules.items():
        stored = [adapters[name].modules[path] for name in sorted(adapters)]
        assert factors.a.tobytes() == np.concatenate([f.a for f in stored]).tobytes()
        assert factors.b.tobytes() == np.concatenate([f.b for f in stored], axis=1).tobytes()
        assert factors.scale == 0.2 * 2.0


def test_gains_of_zero_give_a_zero_adapter(make_adapters, dense):
    adapters = make_adapters()
    merged = merge(adapters, "linear", weights=dict.fromkeys(adapters, 0.0))
    assert not any(delta.any() for delta in dense(merged).values())


def test_dense_deltas_come_alike_one_by_one_and_in_a_row(make_adapters):
    merged = merge(make_adapters(), "ties@0.5")
    assert isinstance(merged, DenseDelta)
    assert merged.modules == {"model.layers.0.k_proj": (8, 20), "model.layers.0.q_proj": (24, 20)}
    assert merged.base == "base"
    streamed = dict(merged.items())
    assert list(streamed) == list(merged.modules)
    for path, delta in streamed.items():
        assert delta.shape == merged.modules[path]
        assert delta.tobytes() == merged.delta(path).tobytes()


def test_another_density_seed_or_weight_compiles_nothing(make_adapters, caplog):
    def compilations(recipe, **options):
        caplog.clear()
        with jax.log_compiles():
            dict(merge(adapters, recipe, **options).items())
        return [text for text in caplog.messages if text.startswith("Finished XLA compilation")]

    adapters = make_adapters(shapes={"a": (30, 21), "b": (30, 21)})
    assert len(compilations("ties@0.5")) >= 1
    assert compilations("ties@0.3*2", weights=WEIGHTS, seed=7) == []
    compilations("dare_ties@0.5")
    assert compilations("dare_ties@0.3*2", weights=WEIGHTS, seed=7) == []


@pytest.mark.parametrize("recipe", ["ties@0.5", "soup", "ties_core@1"])
def test_an_adapter_of_weight_zero_has_no_say(make_adapters, dense, recipe):
    adapters = make_adapters()
    silent = dense(merge(adapters, recipe, weights={"de": 1.0, "en": 0.0, "ja": 2.0}))
    if recipe == "ties_core@1":  # Its factors are in the basis all the same.
        adapters["en"] = Adapter(
            {p: Factors(f.a, f.b, 0.0) for p, f in adapters["en"].modules.items()}, base="base"
        )
        absent = dense(merge(adapters, recipe, weights={"de": 1.0, "en": 1.0, "ja": 2.0}))
    else:
        left = {name: adapters[name] for name in ("de", "ja")}
        absent = dense(merge(left, recipe, weights={"de": 1.0, "ja": 2.0}))
    for path in silent:
        atol = 1e-5 * np.abs(absent[path]).max()
        np.testing.assert_allclose(silent[path], absent[path], rtol=0, atol=atol)


@pytest.mark.parametrize("recipe", ["ties@0.5", "ties_knots@0.5", "ties_core@0.5", "linear"])
def test_tiny_adapters_are_merged_like_large_ones(make_adapters, dense, recipe):
    """Nothing is lost to a threshold of absolute size."""
    adapters = make_adapters()
    tiny = {
        name: Adapter({p: Factors(f.a, f.b * 2.0**-24, f.scale) for p, f in a.modules.items()})
        for name, a in adapters.items()
    }
    large, small = dense(merge(adapters, recipe)), dense(merge(tiny, recipe))
    for path in large:
        expected = large[path] * 2.0**-24
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(small[path], expected, rtol=0, atol=atol)
