"""The `peft/...` recipes against PEFT's `add_weighted_adapter`, and where ours equals PEFT's."""

import merge_references
import numpy as np
import peft_models
import pytest

from langmerge_jax.adapters import save_adapter
from langmerge_jax.merging import merge

WEIGHTS = [
    {"de": 1.0, "en": 1.0, "ja": 1.0},
    {"de": 0.5, "en": 2.0, "ja": 1.25},
    {"de": 1.0, "en": -0.7, "ja": 0.0},
]


@pytest.fixture
def peft_merge(tmp_path):
    def run(adapters, weights, **options):
        for name, adapter in adapters.items():
            save_adapter(tmp_path / name, adapter)
        modules = next(iter(adapters.values())).modules
        shapes = {path: (f.out_features, f.in_features) for path, f in modules.items()}
        directories = {name: tmp_path / name for name in adapters}
        return peft_models.merged_by_peft(directories, shapes, weights, **options)

    return run


def assert_close(merged, expected):
    assert merged.keys() == expected.keys()
    for path, delta in merged.items():
        atol = 2e-6 * np.abs(expected[path]).max()
        np.testing.assert_allclose(delta, expected[path], rtol=0, atol=atol)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_peft_linear_is_pefts_linear(make_adapters, dense, peft_merge, weights):
    adapters = make_adapters(scales=(2.0, 0.5, 1.0))
    merged = dense(merge(adapters, "peft/linear", weights=weights))
    assert_close(merged, peft_merge(adapters, weights, combination_type="linear"))


@pytest.mark.parametrize("density", [1.0, 0.5, 0.13])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_peft_ties_is_pefts_ties(make_adapters, dense, peft_merge, weights, density):
    adapters = make_adapters(scales=(2.0, 0.5, 1.0))
    merged = dense(merge(adapters, f"peft/ties@{density}", weights=weights))
    options = {"combination_type": "ties", "density": density}
    assert_close(merged, peft_merge(adapters, weights, **options))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_peft_dare_ties_is_pefts_where_nothing_is_drawn(make_adapters, dense, peft_merge, weights):
    adapters = make_adapters(scales=(2.0, 0.5, 1.0))
    merged = dense(merge(adapters, "peft/dare_ties@1", weights=weights))
    options = {"combination_type": "dare_ties", "density": 1.0}
    assert_close(merged, peft_merge(adapters, weights, **options))


def test_one_adapter_is_pefts_linear_whatever_the_type(make_adapters, dense, peft_merge):
    adapters = {"ja": make_adapters()["ja"]}
    merged = dense(merge(adapters, "peft/ties@0.2", weights={"ja": 0.5}))
    options = {"combination_type": "ties", "density": 0.2}
    assert_close(merged, peft_merge(adapters, {"ja": 0.5}, **options))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_linear_is_pefts_cat(make_adapters, dense, peft_merge, weights):
    adapters = make_adapters(ranks=(2, 4, 3), scales=(2.0, 0.5, 1.0))
    merged = dense(merge(adapters, "linear", weights=weights))
    assert_close(merged, peft_merge(adapters, weights, combination_type="cat"))


@pytest.mark.parametrize("density", [1.0, 0.5, 0.13])
def test_ties_of_equal_weights_is_pefts_ties_on_task_vectors(make_adapters, density):
    adapters = make_adapters(scales=(2.0, 0.5, 1.0))
    merged = merge(adapters, f"ties@{density}")
    for path in merged.modules:
        deltas = [merge_references.task_vector(a.modules[path]) for a in adapters.values()]
        expected = peft_models.ties_by_peft(deltas, [1.0, 1.0, 1.0], density)
        atol = 2e-6 * np.abs(expected).max()
        np.testing.assert_allclose(merged.delta(path), expected, rtol=0, atol=atol)
