"""The rank of a result, against a full singular value decomposition in float64."""

import jax
import merge_references
import numpy as np
import pytest

from langmerge_jax.adapters import Adapter
from langmerge_jax.merging import Merge, merge

WEIGHTS = {"de": 0.5, "en": 2.0, "ja": 1.25}
EXACT = {
    "linear": lambda deltas, w: merge_references.weighted_sum(deltas, w),
    "ties@0.5": lambda deltas, w: merge_references.ties(deltas, w, 0.5),
    "ties_knots@0.5": lambda deltas, w: merge_references.ties_knots(deltas, w, 0.5),
    "peft/linear": None,
}


@pytest.fixture
def adapters(make_adapters):
    return make_adapters(scales=(2.0, 0.5, 1.0))


def exact(adapters, recipe, dense):
    """The merge without a rank in float64: a reference where there is one."""
    reference = EXACT[recipe]
    if reference is None:
        with jax.enable_x64(True):
            return dense(merge(adapters, recipe, weights=WEIGHTS, dtype=np.float64))
    values = [WEIGHTS[name] for name in sorted(adapters)]
    paths = adapters["de"].modules
    return {
        p: reference(
            [merge_references.task_vector(a.modules[p]) for a in adapters.values()], values
        )
        for p in paths
    }


def rounding(delta, rank):
    """How far float32 may be off the best of a rank: what is cut off turns into what is kept, the
    closer the singular values on both sides of the cut are."""
    s = np.append(np.linalg.svd(delta, compute_uv=False), 0)
    return 8 * np.finfo(np.float32).eps * s[0] * (1 + s[rank - 1] / (s[rank - 1] - s[rank]))


def assert_truncated(job, expected, rank_of):
    """The best of its rank in every module, and the share of all energy it keeps."""
    merged = job.adapter(dict(job.factors()))
    assert isinstance(merged, Adapter)
    kept = total = 0.0
    for path, delta in expected.items():
        rank = rank_of(path, delta)
        best, energy = merge_references.truncated(delta, rank)
        factors = merged.modules[path]
        assert factors.rank == min(rank, *delta.shape)
        found = factors.delta(np.float64)
        np.testing.assert_allclose(found, best, rtol=0, atol=rounding(delta, factors.rank))
        kept, total = kept + energy * np.sum(delta**2), total + np.sum(delta**2)
    assert job.energy == pytest.approx(kept / total, abs=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
@pytest.mark.parametrize("recipe", ["linear", "ties@0.5", "ties_knots@0.5"])
def test_a_rank_is_the_best_of_that_rank(adapters, dense, recipe, rank):
    expected = exact(adapters, recipe, dense)
    job = Merge(adapters, f"{recipe},rank={rank}", weights=WEIGHTS)
    assert_truncated(job, expected, lambda path, delta: rank)


@pytest.mark.parametrize("recipe", EXACT)
def test_inputs_is_the_highest_rank_of_each_module(make_adapters, dense, recipe):
    ranks = (4, 4, 4) if recipe.startswith("peft") else (2, 5, 3)
    adapters = make_adapters(ranks=ranks, scales=(2.0, 0.5, 1.0))
    expected = exact(adapters, recipe, dense)
    job = Merge(adapters, f"{recipe},rank=inputs", weights=WEIGHTS)
    assert_truncated(job, expected, lambda path, delta: max(ranks))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("recipe", ["linear", "ties@0.5", "ties_knots@0.5"])
def test_a_share_of_energy_is_the_lowest_rank_that_keeps_it(adapters, dense, recipe, share):
    expected = exact(adapters, recipe, dense)

    def lowest(path, delta):
        squares = np.linalg.svd(delta, compute_uv=False) ** 2
        return int(np.searchsorted(np.cumsum(squares) / squares.sum(), share)) + 1

    job = Merge(adapters, f"{recipe},rank={share}", weights=WEIGHTS)
    assert_truncated(job, expected, lowest)
    assert job.energy >= share


def test_a_rank_beyond_what_there_is_keeps_all(adapters, dense):
    expected = exact(adapters, "ties_knots@0.5", dense)
    job = Merge(adapters, "ties_knots@0.5,rank=500", weights=WEIGHTS)
    found = dense(job.adapter(dict(job.factors())))
    for path, delta in expected.items():
        atol = 2e-5 * np.abs(delta).max()
        np.testing.assert_allclose(found[path], delta, rtol=0, atol=atol)
    assert job.energy == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("recipe", ["linear,rank=exact", "ties_knots@0.5", "ties@0.5"])
def test_without_a_rank_nothing_is_truncated(adapters, recipe):
    job = Merge(adapters, recipe)
    if not job.recipe.full_rank:
        dict(job.factors())
    assert job.energy is None
