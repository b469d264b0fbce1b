"""Similarity of adapters, against deltas built whole in float64."""

import numpy as np
import pytest

from langmerge_jax.adapters import Adapter, Factors
from langmerge_jax.merging.similarity import cosines, sign_conflict


def adapter(seed, rank, scale):
    rng = np.random.default_rng(seed)
    modules = {}
    for layer, (o, i) in enumerate([(12, 8), (5, 20)]):
        a = rng.normal(size=(rank, i)).astype(np.float32)
        b = rng.normal(size=(o, rank)).astype(np.float32)
        modules[f"model.layers.{layer}.q_proj"] = Factors(a, b, scale)
    return Adapter(modules)


def delta(adapter):
    return [
        f.scale * f.b.astype(np.float64) @ f.a.astype(np.float64) for f in adapter.modules.values()
    ]


@pytest.fixture
def adapters():
    return {"en": adapter(0, 3, 2.0), "de": adapter(1, 5, 0.5), "ja": adapter(2, 3, 1.0)}


def test_cosines_are_those_of_the_whole_deltas(adapters):
    flat = np.stack([np.concatenate([d.ravel() for d in delta(a)]) for a in adapters.values()])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines(adapters), flat @ flat.T, atol=1e-9)


def test_an_adapter_and_its_opposite(adapters):
    one = adapters["en"]
    opposite = Adapter({n: Factors(f.a, -f.b, f.scale) for n, f in one.modules.items()})
    assert cosines({"a": one, "b": opposite})[0, 1] == pytest.approx(-1)
    for name, factors in one.modules.items():
        assert sign_conflict([factors, factors]) == pytest.approx(0, abs=1e-6)
        assert sign_conflict([factors, opposite.modules[name]]) == pytest.approx(0.5)


def test_sign_conflict_count_what_goes_against_the_sum(adapters):
    deltas = [delta(a) for a in adapters.values()]
    for number, module in enumerate(adapters["en"].modules):
        share = sign_conflict([a.modules[module] for a in adapters.values()])
        stack = np.stack([d[number] for d in deltas])
        against = np.sign(stack) != np.sign(stack.sum(0))
        assert share == pytest.approx(np.abs(stack)[against].sum() / np.abs(stack).sum(), rel=1e-4)
