"""mergekit itself, on task vectors in memory. Importing this skips where it is missing."""

import warnings

import numpy as np
import pytest

REASON = "mergekit 0.1.5 is not installed (pip install --no-deps mergekit==0.1.5 immutables)"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason=REASON)
    api = pytest.importorskip("mergekit.merge_methods.api", reason=REASON)
    sparsify = pytest.importorskip("mergekit.sparsify", reason=REASON)


def merged(deltas, method, weights=None, **parameters):
    """What a method makes of task vectors on a base of zeros, float64 out of float32.

    Args:
        deltas: One array an adapter.
        method: mergekit's name.
        weights: One an adapter; None for a method that takes none.
        **parameters: Of the method; `density` and the like are the same for all.
    """
    tensors = [torch.from_numpy(np.array(x, np.float32)) for x in deltas]
    base = {} if method == "linear" else {"base_index": 0}
    if base:
        tensors = [torch.zeros_like(tensors[0]), *tensors]
    if weights is not None:
        first = len(base)
        parameters["weight"] = {first + i: float(w) for i, w in enumerate(weights)}
    torch.manual_seed(0)
    return api.merge_tensors(tensors, method, parameters=parameters, **base).double().numpy()
