"""Merges at a smaller rank, against a full singular value decomposition in float64."""

import dataclasses

import numpy as np
import pytest

from langmerge_jax.adapters import Adapter, Factors
from langmerge_jax.errors import InputError
from langmerge_jax.merging import DenseDelta
from langmerge_jax.merging.truncate import dense, highest_rank, truncate


def delta(factors):
    return factors.scale * factors.b.astype(np.float64) @ factors.a.astype(np.float64)


@pytest.fixture
def adapter():
    rng = np.random.default_rng(0)
    shapes = {"q": (24, 16, 10), "k": (6, 16, 10), "down": (16, 40, 5)}
    return Adapter(
        {
            name: Factors(
                rng.normal(size=(rank, i)).astype(np.float32),
                rng.normal(size=(o, rank)).astype(np.float32),
                0.5,
            )
            for name, (o, i, rank) in shapes.items()
        },
        base="some-base",
        task_type="CAUSAL_LM",
    )


@pytest.mark.parametrize("rank", [1, 3, 6, 10])
@pytest.mark.parametrize("full", [False, True])
def test_truncation_is_the_best_of_its_rank(adapter, rank, full):
    found, energy = truncate(dense(adapter) if full else adapter, rank)
    kept = total = 0.0
    for name, factors in adapter.modules.items():
        left, values, right = np.linalg.svd(delta(factors), full_matrices=False)
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        np.testing.assert_allclose(delta(found.modules[name]), best, atol=1e-4)
        kept, total = kept + np.sum(values[:rank] ** 2), total + np.sum(values**2)
    assert energy == pytest.approx(kept / total, abs=1e-6)
    assert found.base == "some-base"
    assert max(f.rank for f in found.modules.values()) <= rank


def test_exact_rank_keeps_everything(adapter):
    assert highest_rank(adapter) == 10
    found, energy = truncate(adapter, 10)
    assert energy == pytest.approx(1.0)
    for name, factors in adapter.modules.items():
        np.testing.assert_allclose(delta(found.modules[name]), delta(factors), atol=1e-4)


def test_dense_is_the_same_change(adapter):
    deltas = dense(adapter)
    assert isinstance(deltas, DenseDelta)
    for name, value in deltas.items():
        np.testing.assert_allclose(value, delta(adapter.modules[name]), atol=1e-4)


@pytest.mark.parametrize("full", [False, True])
def test_what_a_merge_holds_besides_its_modules_survives(adapter, full):
    """An embedding's weight changes by the transpose: without its flag it would be unfit."""
    modules = adapter.modules | {"wte": dataclasses.replace(adapter.modules["q"], embedding=True)}
    heads = {"score.weight": np.ones((2, 16), np.float32)}
    given = Adapter(modules, "some-base", "v2", "SEQ_CLS", heads, fan_in_fan_out=True)
    found, _ = truncate(dense(given) if full else given, 3)
    assert [path for path, x in found.modules.items() if x.embedding] == ["wte"]
    assert (found.base, found.revision, found.task_type) == ("some-base", "v2", "SEQ_CLS")
    assert found.fan_in_fan_out
    np.testing.assert_array_equal(found.heads["score.weight"], heads["score.weight"])


def test_only_embeddings_are_transposed_unless_the_base_stores_all_weights_so(adapter):
    modules = adapter.modules | {"wte": dataclasses.replace(adapter.modules["q"], embedding=True)}
    assert dense(Adapter(modules)).transposed == {"wte"}
    assert dense(Adapter(modules, fan_in_fan_out=True)).transposed == {"wte", "q", "k", "down"}
    assert dense(adapter).transposed == set()


def test_rank_below_one_is_refused(adapter):
    with pytest.raises(InputError, match="rank 0"):
        truncate(adapter, 0)
