import numpy as np
import pytest

from langmerge_jax.adapters import Adapter, Factors

# Two shapes; in the second one, out is less than the sum of the ranks.
SHAPES = {"model.layers.0.q_proj": (24, 20), "model.layers.0.k_proj": (8, 20)}


@pytest.fixture
def make_adapters():
    """Three adapters of random factors, of task vectors that are far from orthogonal."""

    def make(ranks=(4, 4, 4), scales=(2.0, 2.0, 2.0), dtype=np.float32, shapes=SHAPES, seed=0):
        rng = np.random.default_rng(seed)
        common = {
            path: (rng.normal(size=(max(ranks), i)), rng.normal(size=(o, max(ranks))))
            for path, (o, i) in shapes.items()
        }
        adapters = {}
        for name, rank, scale in zip(("de", "en", "ja"), ranks, scales, strict=False):
            modules = {}
            for path, (a, b) in common.items():
                a = a[:rank] + rng.normal(size=a[:rank].shape)
                b = b[:, :rank] + rng.normal(size=b[:, :rank].shape)
                modules[path] = Factors(a.astype(dtype), b.astype(dtype), scale)
            adapters[name] = Adapter(modules, base="base")
        return adapters

    return make


@pytest.fixture
def dense():
    """The deltas of whatever `merge` returns, by module path, in float64."""

    def deltas(merged):
        if isinstance(merged, Adapter):
            return {path: factors.delta(np.float64) for path, factors in merged.modules.items()}
        return {path: merged.delta(path).astype(np.float64) for path in merged.modules}

    return deltas
