"""Whole merges of five adapters of rank 16, position by position against float64.

Positions whose value hangs on a comparison of two nearly equal numbers may fall either way. At most
ten in a million may differ, and each must be such a position.
"""

import jax
import merge_references
import numpy as np
import pytest

from langmerge_jax.adapters import Adapter, Factors
from langmerge_jax.merging import merge

SHAPES = {"layers.0.q": (512, 384), "layers.0.k": (128, 384)}
NAMES = ("de", "en", "es", "fr", "ja")
WEIGHTS = dict(zip(NAMES, (0.25, 1.0, 0.625, 0.5, 0.4), strict=True))
VALUES = np.array(list(WEIGHTS.values()))
DENSITY = 0.5
NEAR = 1e-5


@pytest.fixture(scope="module")
def adapters():
    """Adapters with a common part, of the size of trained ones."""
    rng = np.random.default_rng(0)
    common = {
        p: (rng.normal(size=(16, i)), rng.normal(size=(o, 16))) for p, (o, i) in SHAPES.items()
    }
    made = {}
    for name in NAMES:
        modules = {}
        for path, (a, b) in common.items():
            a = (a / 2 + rng.normal(size=a.shape)) / np.sqrt(a.shape[1])
            b = (b / 2 + rng.normal(size=b.shape)) / 100
            modules[path] = Factors(a.astype(np.float32), b.astype(np.float32), 2.0)
        made[name] = Adapter(modules)
    return made


def factors_of(adapters, path):
    return [adapters[name].modules[path] for name in NAMES]


def deltas_of(adapters, path):
    return [merge_references.task_vector(f) for f in factors_of(adapters, path)]


def trimmed(xs):
    return [merge_references.trim(x, int(DENSITY * x.size)) for x in xs]


def near_cut(x, count):
    """Entries whose magnitude is that of the `count`-th largest, to `NEAR`."""
    last = np.sort(np.abs(x), axis=None)[x.size - count]
    return np.abs(np.abs(x) - last) <= NEAR * last


def near_tie(xs, weights):
    """Entries whose weighted sum is zero, to `NEAR` of what is summed."""
    total = merge_references.weighted_sum(xs, weights)
    size = merge_references.weighted_sum(np.abs(xs), np.abs(weights))
    return (size > 0) & (np.abs(total) <= NEAR * size)


def ties(xs):
    merged = merge_references.vote(trimmed(xs), VALUES)
    beside = np.any([near_cut(x, int(DENSITY * x.size)) for x in xs], axis=0)
    return merged, beside | near_tie(trimmed(xs), VALUES)


def breadcrumbs(xs):
    kept = [merge_references.breadcrumbs(x, DENSITY, 0.01) for x in xs]
    beside = np.zeros(xs[0].shape, bool)
    for x in xs:
        for count in (int(0.01 * x.size), int(0.01 * x.size) + int(DENSITY * x.size)):
            beside |= near_cut(x, count)
    return merge_references.weighted_sum(kept, VALUES), beside


def sce(xs):
    variance = np.var(np.stack(xs), axis=0)
    beside = near_cut(variance, int(DENSITY * variance.size))
    beside |= near_tie(merge_references.sce_select(xs, DENSITY), np.ones(len(xs)))
    return merge_references.sce(xs, DENSITY, VALUES), beside


def assert_exact(pairs):
    """At most ten in a million differ, all of them beside a threshold.

    Args:
        pairs: Of each module (found, expected, beside), arrays of one shape.
    """
    found, expected, beside = (
        np.concatenate([np.ravel(x) for x in one]) for one in zip(*pairs, strict=True)
    )
    differs = np.abs(found - expected) > NEAR * np.abs(expected).max()
    assert np.count_nonzero(differs) <= 1e-5 * found.size
    assert not np.any(differs & ~beside)
    assert beside.mean() < 1e-3  # or else nothing would have been shown


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("method", [ties, breadcrumbs, sce], ids=lambda method: method.__name__)
def test_merges_of_task_vectors_are_exact(adapters, dense, method, bits):
    with jax.enable_x64(bits == 64):
        merged = dense(merge(adapters, f"{method.__name__}@{DENSITY}", weights=WEIGHTS))
    assert_exact([(merged[path], *method(deltas_of(adapters, path))) for path in SHAPES])


def coordinates_of(space, adapters, path):
    """The reference's coordinates, and the maps of a delta to and from them."""
    if space == "knots":
        u, xs = merge_references.knots_coordinates(deltas_of(adapters, path))
        return xs, lambda delta: u.T @ delta, lambda m: u @ m
    u, v, xs = merge_references.core_coordinates(factors_of(adapters, path))
    return xs, lambda delta: u.T @ delta @ v.T, lambda m: u @ m @ v


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("space", ["knots", "core"])
def test_merges_in_a_shared_basis_are_exact(adapters, space, bits):
    with jax.enable_x64(bits == 64):
        merged = merge(adapters, f"ties_{space}@{DENSITY}", weights=WEIGHTS, dtype=np.float64)
    pairs = []
    for path in SHAPES:
        xs, project, lift = coordinates_of(space, adapters, path)
        delta = merged.modules[path].delta(np.float64)
        expected, beside = ties(xs)
        pairs.append((project(delta), expected, beside))
        largest = np.abs(lift(expected)).max()
        assert np.abs(delta - lift(expected)).max() <= NEAR * largest
    assert_exact(pairs)
