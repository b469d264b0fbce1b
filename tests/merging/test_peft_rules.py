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
    def run(adapters, weights, repeat=None, **options):
        for name, adapter in adapters.items():
            save_adapter(tmp_path / name, adapter)
        modules = next(iter(adapters.values())).modules
        shapes = {path: (f.out_features, f.in_features) for path, f in modules.items()}
        directories = {name: tmp_path / name for name in adapters}
        if repeat is None:
            return peft_models.merged_by_peft(directories, shapes, weights, **options)
        model = peft_models.load(directories, shapes)
        return [peft_models.combined(model, weights, f"m{i}", **options) for i in range(repeat)]

    return run


def assert_close(merged, expected, rtol=2e-6):
    assert merged.keys() == expected.keys()
    for path, delta in merged.items():
        atol = rtol * np.abs(expected[path]).max()
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


@pytest.mark.parametrize("density", [1.0, 0.5, 0.13])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_peft_magnitude_prune_is_pefts(make_adapters, dense, peft_merge, weights, density):
    adapters = make_adapters(scales=(2.0, 0.5, 1.0))
    merged = dense(merge(adapters, f"peft/magnitude_prune@{density}", weights=weights))
    options = {"combination_type": "magnitude_prune", "density": density}
    assert_close(merged, peft_merge(adapters, weights, **options))


@pytest.mark.parametrize("sign", ["total", "frequency"])
def test_peft_ties_elects_by_count_too(make_adapters, dense, peft_merge, sign):
    adapters = make_adapters(scales=(2.0, 0.5, 1.0))
    merged = dense(merge(adapters, f"peft/ties@0.6,sign={sign}", weights=WEIGHTS[1]))
    options = {"combination_type": "ties", "density": 0.6, "majority_sign_method": sign}
    assert_close(merged, peft_merge(adapters, WEIGHTS[1], **options))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("preset", "kind"), [("peft/svd", "svd"), ("peft/cat", "cat")])
def test_peft_svd_and_cat_are_pefts(make_adapters, dense, peft_merge, preset, kind, weights):
    adapters = make_adapters(ranks=(2, 4, 3), scales=(2.0, 0.5, 1.0))
    merged = dense(merge(adapters, preset, weights=weights))
    assert_close(merged, peft_merge(adapters, weights, combination_type=kind))


@pytest.mark.parametrize("rank", ["", ",rank=8"])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.13])
@pytest.mark.parametrize("kind", ["ties", "magnitude_prune"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_trims_of_task_vectors_and_their_rank_are_pefts(
    make_adapters, dense, peft_merge, weights, kind, density, rank
):
    """`ties_svd` and `magnitude_prune_svd`, truncated to the inputs' rank or a given one."""
    adapters = make_adapters(ranks=(2, 4, 3), scales=(2.0, 0.5, 1.0))
    merged = dense(merge(adapters, f"peft/{kind}_svd@{density}{rank}", weights=weights))
    options = {"combination_type": f"{kind}_svd", "density": density}
    if rank:
        options["svd_rank"] = int(rank.split("=")[1])
    assert_close(merged, peft_merge(adapters, weights, **options), rtol=1e-5)


@pytest.mark.parametrize("kind", ["dare_linear", "dare_linear_svd", "dare_ties_svd"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_random_types_are_pefts_where_nothing_is_drawn(
    make_adapters, dense, peft_merge, weights, kind
):
    adapters = make_adapters(scales=(2.0, 0.5, 1.0))
    merged = dense(merge(adapters, f"peft/{kind}@1", weights=weights))
    options = {"combination_type": kind, "density": 1.0}
    assert_close(merged, peft_merge(adapters, weights, **options), rtol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        ("peft/dare_linear@0.5", "dare_linear"),
        ("peft/dare_ties@0.5", "dare_ties"),
        ("peft/dare_linear_svd@0.5,rank=6", "dare_linear_svd"),
        ("peft/dare_ties_svd@0.5,rank=6", "dare_ties_svd"),
    ],
)
def test_random_types_are_pefts_on_average(make_adapters, dense, peft_merge, recipe, kind):
    """The means of many merges agree entry by entry within five of their standard errors."""
    shapes = {"a": (6, 5)}
    adapters = make_adapters(ranks=(2, 2, 2), scales=(2.0, 0.5, 1.0), shapes=shapes)
    draws = 200
    ours = np.stack([dense(merge(adapters, recipe, seed=s))["a"] for s in range(draws)])
    options = {"combination_type": kind, "density": 0.5}
    if "rank" in recipe:
        options["svd_rank"] = 5
    equal = dict.fromkeys(adapters, 1.0)
    peft_models.torch.manual_seed(0)
    theirs = np.stack([x["a"] for x in peft_merge(adapters, equal, repeat=draws, **options)])
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / draws)
    assert np.all(np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 5 * error)
    spread = ours.std(axis=0).mean() / theirs.std(axis=0).mean()
    assert spread == pytest.approx(1, abs=0.1)


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
