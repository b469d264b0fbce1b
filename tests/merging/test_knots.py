import jax
import merge_references
import ml_dtypes
import numpy as np
import pytest

from langmerge_jax.adapters import Adapter, Factors
from langmerge_jax.merging import merge

CASES = {
    "equal ranks": {"ranks": (4, 4, 4)},
    "mixed ranks": {"ranks": (2, 6, 3), "scales": (2.0, 0.5, 1.0)},
    "rank above in": {"ranks": (4, 25, 4)},
}


def task_vectors(adapters, path):
    return [merge_references.task_vector(adapters[name].modules[path]) for name in sorted(adapters)]


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 2e-5), (64, 1e-9)])
@pytest.mark.parametrize("case", CASES)
def test_the_qr_route_is_ties_on_the_full_svd(make_adapters, dense, case, bits, tolerance):
    dtype = np.float32 if bits == 32 else np.float64
    adapters = make_adapters(dtype=dtype, **CASES[case])
    weights = {"de": 0.5, "en": 2.0, "ja": 1.25}
    for density in (1.0, 0.7, 0.5, 0.2, 0.01):
        with jax.enable_x64(bits == 64):
            merged = merge(adapters, f"ties_knots@{density}", weights=weights)
        for path, delta in dense(merged).items():
            deltas = task_vectors(adapters, path)
            expected = merge_references.ties_knots(deltas, [0.5, 2.0, 1.25], density)
            error = np.linalg.norm(delta - expected) / np.linalg.norm(expected)
            assert error < tolerance, (path, density)


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_an_adapter_of_at_most_the_sum_of_ranks(make_adapters, case):
    adapters = make_adapters(**CASES[case])
    merged = merge(adapters, "ties_knots@0.5")
    assert isinstance(merged, Adapter)
    assert merged.base == "base"
    for path, factors in merged.modules.items():
        total = sum(adapter.modules[path].rank for adapter in adapters.values())
        assert factors.rank <= min(total, factors.out_features)
        assert factors.scale == 1.0
        basis = factors.b.astype(np.float64)
        np.testing.assert_allclose(basis.T @ basis, np.eye(factors.rank), atol=1e-5)


def test_a_sum_in_the_knots_basis_is_the_sum_of_deltas(make_adapters, dense):
    adapters = make_adapters(ranks=(2, 6, 3), scales=(2.0, 0.5, 1.0), dtype=np.float64)
    gains = {"de": 0.5, "en": -2.0, "ja": 1.25}
    with jax.enable_x64(True):
        knots = dense(merge(adapters, "knots:none:sum", weights=gains))
    for path, delta in knots.items():
        expected = sum(
            gains[name] * merge_references.task_vector(adapters[name].modules[path])
            for name in adapters
        )
        np.testing.assert_allclose(delta, expected, rtol=0, atol=1e-11)


def test_directions_without_signal_are_no_part_of_the_trim(make_adapters):
    """Two adapters share one task vector's directions, so X has half the rank of its factors."""
    one = make_adapters(ranks=(4,), shapes={"a": (24, 20)})["de"].modules["a"]
    turned = Factors(one.a, one.b @ np.diag([2.0, -1.0, 0.5, 3.0]).astype(np.float32), one.scale)
    adapters = {"en": Adapter({"a": one}), "ja": Adapter({"a": turned})}
    merged = merge(adapters, "knots:magnitude:sum@0.25", weights={"en": 1.0, "ja": 0.0})
    factors = merged.modules["a"]
    assert factors.rank <= 4
    assert np.count_nonzero(factors.a) == int(0.25 * 4 * 20)


def test_untrained_adapters_merge_to_zero(make_adapters, dense):
    adapters = {
        name: Adapter({path: Factors(f.a, 0 * f.b, f.scale) for path, f in adapter.modules.items()})
        for name, adapter in make_adapters().items()
    }
    merged = merge(adapters, "ties_knots@0.5")
    assert all(factors.rank == 1 for factors in merged.modules.values())
    assert not any(delta.any() for delta in dense(merged).values())


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((np.float32, np.float32), np.float32),
        ((np.float16, np.float16), np.float16),
        ((ml_dtypes.bfloat16, ml_dtypes.bfloat16), ml_dtypes.bfloat16),
        ((ml_dtypes.bfloat16, np.float16), np.float32),
        ((ml_dtypes.bfloat16, np.float32), np.float32),
    ],
)
def test_the_widest_dtype_of_the_adapters_is_written(make_adapters, dense, dtypes, expected):
    both = zip(("de", "en"), dtypes, strict=True)
    stored = {name: make_adapters(dtype=dtype)[name] for name, dtype in both}
    for recipe in ("ties_knots@1", "linear", "peft/linear"):
        merged = merge(stored, recipe)
        assert {f.a.dtype for f in merged.modules.values()} == {np.dtype(expected)}
        assert {f.b.dtype for f in merged.modules.values()} == {np.dtype(expected)}
    # Computed in float32 from what is stored, so only the last rounding is coarse.
    for path, delta in dense(merge(stored, "ties_knots@1")).items():
        reference = merge_references.ties_knots(task_vectors(stored, path), [1.0, 1.0], 1.0)
        error = np.linalg.norm(delta - reference) / np.linalg.norm(reference)
        assert error < 2 * float(ml_dtypes.finfo(expected).eps) + 1e-5
