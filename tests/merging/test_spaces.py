"""Coordinates in every space, and the way back, against full decompositions in float64."""

import jax
import jax.numpy as jnp
import merge_references
import numpy as np
import pytest

from langmerge_jax.adapters import Factors
from langmerge_jax.merging.spaces import SPACES, Stack

# (out, in), and the rank and scale of each adapter.
CASES = {
    "equal ranks": ((40, 30), [(4, 2.0), (4, 2.0), (4, 2.0)]),
    "mixed ranks and scales": ((40, 30), [(2, 2.0), (6, 0.25), (3, 4 / 3**0.5)]),
    "ranks above out": ((8, 30), [(4, 1.0), (6, 1.0), (4, 1.0)]),
    "a rank above in": ((40, 5), [(4, 1.0), (7, 0.5), (4, 1.0)]),
    "one adapter": ((12, 20), [(4, 2.0)]),
}
BITS = pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-5), (64, 1e-10)])
CASE = pytest.mark.parametrize("case", CASES)


def make(case, seed=0):
    (o, i), adapters = CASES[case]
    rng = np.random.default_rng(seed)
    return [
        Factors(rng.normal(size=(r, i)) / np.sqrt(i), rng.normal(size=(o, r)), scale)
        for r, scale in adapters
    ]


def rounded(factors, bits):
    """The factors as the computation gets them, so that no input rounding is measured."""
    return [
        Factors(f.a.astype(f"f{bits // 8}"), f.b.astype(f"f{bits // 8}"), np.float32(f.scale))
        for f in factors
    ]


def projected(space, factors):
    dtype = factors[0].a.dtype
    stack = Stack(
        tuple(f.a for f in factors),
        tuple(f.b for f in factors),
        np.array([f.scale for f in factors], dtype),
    )
    with jax.enable_x64(dtype == np.float64):
        found = jax.jit(SPACES[space].project)(jax.tree.map(jnp.asarray, stack))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def lifted(space, found, j):
    """The delta that the coordinates of adapter j alone become, float64."""
    with jax.enable_x64(True):
        a, b = SPACES[space].lift([jnp.asarray(x[j]) for x in found.parts], found.frame)
        return np.asarray(b) @ np.asarray(a)


def assert_coordinates(found, expected, tolerance):
    """Within `tolerance` of the largest; a basis is defined up to a sign for each row."""
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < tolerance


def of_vectors(matrix, bits):
    """How far singular vectors may be off: they turn by rounding over the gap between values."""
    s = np.linalg.svd(matrix, compute_uv=False)
    s = s[: np.linalg.matrix_rank(matrix)]
    gap = np.min(-np.diff(np.append(s, 0)))
    return 8 * np.finfo(f"f{bits // 8}").eps * s[0] / gap


def row_signs(found, expected):
    """For each row of `[n, rows, columns]`, the sign that turns `found` to `expected`."""
    return np.sign(np.sum(found * expected, axis=(0, 2)))[:, None]


@BITS
@CASE
def test_task_vectors_are_the_products(case, bits, tolerance):
    factors = rounded(make(case), bits)
    found = projected("delta", factors)
    expected = np.stack([merge_references.task_vector(f) for f in factors])
    assert_coordinates(found.parts[0], expected, tolerance)
    assert found.live == (expected.shape[1],)


@pytest.mark.parametrize("bits", [32, 64])
@CASE
def test_knots_coordinates_are_those_of_the_full_svd(case, bits):
    factors = rounded(make(case), bits)
    found = projected("knots", factors)
    deltas = [merge_references.task_vector(f) for f in factors]
    u, expected = merge_references.knots_coordinates(deltas)
    tolerance = of_vectors(np.hstack(deltas), bits)
    k = u.shape[1]
    assert found.live == (k,)
    np.testing.assert_array_equal(found.parts[0][:, k:], 0)
    coordinates, expected = found.parts[0][:, :k], np.stack(expected)
    signs = row_signs(coordinates, expected)
    assert_coordinates(signs * coordinates, expected, tolerance)
    assert_coordinates(found.frame[0][:, :k] * signs.T, u, tolerance)


@BITS
@CASE
def test_knots_v_coordinates_are_those_of_the_full_svd(case, bits, tolerance):
    factors = rounded(make(case), bits)
    found = projected("knots_v", factors)
    u, s, expected = merge_references.knots_v_coordinates(
        [merge_references.task_vector(f) for f in factors]
    )
    k = u.shape[1]
    coordinates, expected = found.parts[0][:, :k], np.stack(expected)
    signs = row_signs(coordinates, expected)
    # A row divided by its singular value carries an error that was divided by it too.
    assert_coordinates(signs * coordinates, expected, tolerance * s[0] / s[-1])
    assert_coordinates(found.frame[1][:k], s, tolerance)


@pytest.mark.parametrize("bits", [32, 64])
@CASE
def test_cores_are_those_of_the_full_svds(case, bits):
    factors = rounded(make(case), bits)
    found = projected("core", factors)
    u_b, v_a, cores = merge_references.core_coordinates(factors)
    # Singular vectors up to a sign each: of rows by U_b, of columns by V_a.
    k_b, k_a = found.parts[0].shape[1:]
    assert (k_b, k_a) == (u_b.shape[1], v_a.shape[0])
    rows = np.sign(np.sum(found.frame[0] * u_b, axis=0))
    columns = np.sign(np.sum(found.frame[1] * v_a.T, axis=0))
    of_u = of_vectors(np.hstack([f.b for f in factors]), bits)
    of_v = of_vectors(np.vstack([f.a for f in factors]), bits)
    assert_coordinates(found.frame[0] * rows, u_b, of_u)
    assert_coordinates(found.frame[1] * columns, v_a.T, of_v)
    assert_coordinates(rows[:, None] * found.parts[0] * columns, np.stack(cores), of_u + of_v)


@BITS
@pytest.mark.parametrize("space", ["knots", "knots_v", "core"])
@CASE
def test_the_way_back_is_lossless_for_each_adapter_alone(case, space, bits, tolerance):
    """Lifting the coordinates of one adapter gives its own task vector."""
    factors = rounded(make(case), bits)
    found = projected(space, factors)
    for j, one in enumerate(factors):
        expected = merge_references.task_vector(one)
        largest = max(np.abs(merge_references.task_vector(f)).max() for f in factors)
        assert np.abs(lifted(space, found, j) - expected).max() < tolerance * largest


@BITS
@pytest.mark.parametrize("fault", ["dependent directions", "an adapter of zeros", "all zeros"])
@pytest.mark.parametrize("space", ["knots", "knots_v", "core"])
def test_deficient_factors_lose_nothing(space, fault, bits, tolerance):
    factors = make("equal ranks")
    if fault == "dependent directions":
        # The third repeats the first with other gains, and one direction of the second is empty.
        factors[2] = Factors(factors[0].a, factors[0].b * [2.0, -1.0, 0.5, 3.0], 1.0)
        factors[1] = Factors(factors[1].a, factors[1].b * [1.0, 0.0, 1.0, 1.0], 1.0)
        directions = 7
    else:
        zero = [0] if fault == "an adapter of zeros" else [0, 1, 2]
        factors = [
            Factors(f.a, 0 * f.b, f.scale) if j in zero else f for j, f in enumerate(factors)
        ]
        directions = 12 - 4 * len(zero)
    factors = rounded(factors, bits)
    found = projected(space, factors)
    if space != "core":
        assert found.live == (directions,)
        np.testing.assert_array_equal(found.parts[0][:, directions:], 0)
    for j, one in enumerate(factors):
        delta = lifted(space, found, j)
        if not one.b.any():
            np.testing.assert_array_equal(found.parts[0][j], 0)
        atol = tolerance * max(np.abs(merge_references.task_vector(f)).max() for f in factors)
        np.testing.assert_allclose(delta, merge_references.task_vector(one), rtol=0, atol=atol)


def test_factors_are_their_own_coordinates_and_scales_go_with_the_weights():
    """sqrt|w s| on either side, the sign on A: their product is w s."""
    factors = make("equal ranks")
    found = projected("factor", factors)
    np.testing.assert_array_equal(found.parts[0], np.stack([f.a for f in factors]))
    np.testing.assert_array_equal(found.parts[1], np.stack([f.b for f in factors]))
    weights, scales = np.array([0.5, -2.0, 0.0]), np.array([2.0, 8.0, 1.0])
    of_a, of_b = SPACES["factor"].weights(weights, scales)
    np.testing.assert_allclose(of_a * of_b, weights * scales)
    np.testing.assert_array_equal(of_b, np.abs(of_a))


def test_a_direction_counts_from_the_official_threshold_in_float64():
    """A singular value above 1e-5 is a direction, one below is not, as in the official code."""
    u = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 3)))[0]
    v = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 3)))[0]
    s = np.array([1.0, 2e-5, 0.5e-5])
    one = Factors(np.eye(3) @ v.T, u * s, 1.0)
    assert projected("knots_official", [one]).live == (2,)
    # Ours tells signal from rounding alone.
    assert projected("knots", [one]).live == (3,)
