"""Modules that some adapters lack, counted as zeros."""

import dataclasses

import jax
import merge_references
import numpy as np
import pytest

from langmerge_jax.adapters import Factors, save_adapter
from langmerge_jax.errors import InputError
from langmerge_jax.merging import merge

LACKED = "model.layers.0.k_proj"
WEIGHTS = {"de": 0.5, "en": 2.0, "ja": 1.25}
RECIPES = [
    *("linear", "soup", "svd", "ties@0.5", "dare_ties@0.5", "ties_knots@0.5", "ties_knots@1"),
    *("dare_ties_knots@0.5", "sce@0.5", "ties/official@0.5", "ties_knots@0.5,scope=global"),
    *("knots/official@0.5", "peft/linear", "peft/ties@0.5"),
]


def without(adapter, path):
    modules = {p: f for p, f in adapter.modules.items() if p != path}
    return dataclasses.replace(adapter, modules=modules)


def zeroed(adapter, path):
    """With factors of zeros in one module; A too, which PEFT's types merge on its own."""
    f = adapter.modules[path]
    zeros = Factors(0 * f.a, 0 * f.b, f.scale)
    return dataclasses.replace(adapter, modules=adapter.modules | {path: zeros})


@pytest.fixture
def adapters(make_adapters):
    return make_adapters(scales=(2.0, 0.5, 1.0))


@pytest.mark.parametrize("lacking", ["de", "ja"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_module_that_is_not_there_is_one_of_zeros(adapters, dense, recipe, lacking):
    given = {"weights": WEIGHTS, "seed": 3}
    lacks = adapters | {lacking: without(adapters[lacking], LACKED)}
    zeros = adapters | {lacking: zeroed(adapters[lacking], LACKED)}
    with pytest.raises(InputError, match=f"'{lacking}'.*{LACKED}|{LACKED}.*missing"):
        merge(lacks, recipe, **given)
    found = dense(merge(lacks, recipe, missing="zero", **given))
    expected = dense(merge(zeros, recipe, **given))
    assert found.keys() == expected.keys()
    for path in expected:
        atol = 2e-6 * np.abs(expected[path]).max()
        np.testing.assert_allclose(found[path], expected[path], rtol=0, atol=atol)


def test_a_mean_counts_the_adapter_that_lacks_the_module_and_ties_does_not(adapters, dense):
    """A soup divides by all weights; TIES by those that agree, and a zero agrees with no sign."""
    lacks = adapters | {"en": without(adapters["en"], LACKED)}
    others = ["de", "ja"]
    deltas = [merge_references.task_vector(adapters[name].modules[LACKED]) for name in others]
    weights = [WEIGHTS[name] for name in others]
    soup = dense(merge(lacks, "soup", weights=WEIGHTS, missing="zero"))[LACKED]
    expected = merge_references.weighted_sum(deltas, weights) / sum(WEIGHTS.values())
    np.testing.assert_allclose(soup, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    for recipe, reference in (
        ("ties", merge_references.ties),
        ("ties_knots", merge_references.ties_knots),
    ):
        for density in (1.0, 0.5):
            found = merge(lacks, f"{recipe}@{density}", weights=WEIGHTS, missing="zero")
            expected = reference(deltas, weights, density)
            atol = 2e-5 * np.abs(expected).max()
            np.testing.assert_allclose(dense(found)[LACKED], expected, rtol=0, atol=atol)


def test_pefts_types_skip_what_is_not_there(adapters, dense, tmp_path):
    peft_models = pytest.importorskip("peft_models", reason="peft is not installed")
    lacks = adapters | {"en": without(adapters["en"], LACKED)}
    for name, adapter in lacks.items():
        save_adapter(tmp_path / name, adapter)
    shapes = {p: (f.out_features, f.in_features) for p, f in adapters["de"].modules.items()}
    directories = {name: tmp_path / name for name in lacks}
    for kind, options in {"linear": {}, "ties": {"density": 0.5}, "cat": {}}.items():
        recipe = f"peft/{kind}" + ("@0.5" if options else "")
        found = dense(merge(lacks, recipe, weights=WEIGHTS, missing="zero"))
        expected = peft_models.merged_by_peft(
            directories, shapes, WEIGHTS, combination_type=kind, **options
        )
        for path, delta in expected.items():
            atol = 2e-6 * np.abs(delta).max()
            np.testing.assert_allclose(found[path], delta, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "recipe", ["ties@0.5", "ties_knots@0.5", "ties_core@0.5", "linear", "sce@0.5"]
)
def test_a_module_of_zeros_in_all_adapters_stays_zero(adapters, dense, recipe):
    silent = {name: zeroed(adapter, LACKED) for name, adapter in adapters.items()}
    with jax.enable_x64(True):
        merged = dense(merge(silent, recipe))
    assert not merged[LACKED].any()
    assert all(delta.any() for path, delta in merged.items() if path != LACKED)
