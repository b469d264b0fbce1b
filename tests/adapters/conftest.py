import numpy as np
import pytest

from langmerge_jax.adapters import Adapter, Factors


@pytest.fixture
def make_adapter():
    """Random factors by module path from `(out, in, rank, scale)`."""

    def make(modules, dtype=np.float32, seed=0, **fields):
        rng = np.random.default_rng(seed)
        return Adapter(
            {
                path: Factors(
                    a=rng.normal(size=(rank, in_features)).astype(dtype),
                    b=rng.normal(size=(out_features, rank)).astype(dtype),
                    scale=scale,
                )
                for path, (out_features, in_features, rank, scale) in modules.items()
            },
            **fields,
        )

    return make
