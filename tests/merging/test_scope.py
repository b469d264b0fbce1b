"""Trims over all modules together, streamed, against one sort of everything."""

import jax
import merge_references
import numpy as np
import pytest

from langmerge_jax.adapters import Adapter, Factors
from langmerge_jax.merging import merge, scope, select

SHAPES = {
    "model.layers.2.k_proj": (8, 20),
    "model.layers.2.q_proj": (24, 20),
    "model.layers.10.q_proj": (24, 20),
    "model.layers.10.up_proj": (30, 11),
}
ONES = [1.0, 1.0, 1.0]


@jax.jit
def kept(x, threshold, room):
    return select.kept(x, select.tied(x, threshold, room))


@pytest.fixture
def whole_numbers():
    """Adapters whose deltas are small whole numbers: ties across modules, zeros, zero sums.

    One lacks any change in one module.
    """
    rng = np.random.default_rng(0)
    adapters = {}
    for name in ("de", "en", "ja"):
        modules = {}
        for path, (o, i) in SHAPES.items():
            a = rng.integers(-1, 2, size=(2, i)).astype(np.float32)
            b = rng.integers(-1, 2, size=(o, 2)).astype(np.float32)
            if (name, path) == ("en", "model.layers.2.k_proj"):
                b = 0 * b
            modules[path] = Factors(a, b, 2.0)
        adapters[name] = Adapter(modules)
    return adapters


def by_module(adapters, of=merge_references.task_vector):
    return [[of(adapters[name].modules[path]) for name in sorted(adapters)] for path in SHAPES]


def unscaled(factors):
    return factors.b.astype(np.float64) @ factors.a.astype(np.float64)


def stream(modules, dtype, together):
    """Pieces of the coordinates of modules, `together` modules in one where they are alike."""
    pieces = []
    for start in range(0, len(modules), together):
        names = [f"layers.{j}" for j in range(start, min(start + together, len(modules)))]
        x = [np.asarray(modules[int(name.split(".")[1])], dtype) for name in names]
        x += [x[-1]] * (together - len(x))  # what is beyond the batch repeats the last
        x = np.pad(np.stack(x), ((0, 0), (0, 0), (0, 2), (0, 3)))
        entries = np.full(together, np.prod(modules[0].shape[1:]))
        pieces.append(scope.Piece(names, x, entries))
    return pieces


KINDS = {
    "random": lambda rng, shape: rng.normal(size=shape),
    "tied": lambda rng, shape: rng.integers(-3, 4, size=shape) / 2,
    "zeros": lambda rng, shape: np.where(rng.random(shape) < 0.9, 0.0, rng.normal(size=shape)),
    "huge range": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.integers(-30, 30, shape),
    "one bit apart": lambda rng, shape: 1 + rng.integers(0, 50, size=shape) * 2.0**-23,
    "equal": lambda rng, shape: np.full(shape, -0.1),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_streamed_trim_is_that_of_one_sort(kind, together, dtype):
    rng = np.random.default_rng(0)
    modules = [KINDS[kind](rng, (2, 9, 13)).astype(dtype) for _ in range(11)]
    pieces = stream(modules, dtype, together)
    for density in (0.9, 0.5, 0.1, 0.0009, 0.0001):  # The last keeps int(0.1287) = 0 entries.
        for official in (False, True):
            found = scope.thresholds(lambda: iter(pieces), density, official)
            cut = merge_references.trim_official if official else merge_references.trim
            for adapter in range(2):
                mine = [x[adapter] for x in modules]
                expected = merge_references.trim_together(mine, density, cut)
                for j, (x, want) in enumerate(zip(mine, expected, strict=True)):
                    with jax.enable_x64(dtype is np.float64):
                        room = found.room[f"layers.{j}"][adapter]
                        mask = kept(x, found.bits[adapter], room)
                    np.testing.assert_array_equal(np.where(mask, x, 0), want)


def test_ties_are_kept_by_the_order_of_the_modules_not_of_the_stream():
    modules = [np.ones((1, 3, 4), np.float32) for _ in range(12)]
    pieces = stream(modules, np.float32, 1)
    forward = scope.thresholds(lambda: iter(pieces), 0.3, False)
    backward = scope.thresholds(lambda: iter(pieces[::-1]), 0.3, False)
    taken = {path: int(np.clip(room[0], 0, 12)) for path, room in forward.room.items()}
    # int(0.3 * 144) = 43: three modules and a part of the fourth; layers.10 is not the second.
    assert taken == {f"layers.{j}": (12, 12, 12, 7)[j] if j < 4 else 0 for j in range(12)}
    for path, room in forward.room.items():
        np.testing.assert_array_equal(room, backward.room[path])


@pytest.mark.parametrize("density", [0.5, 0.13, 0.0001])
def test_global_ties_is_ties_of_one_long_vector(whole_numbers, density):
    with jax.enable_x64(True):
        merged = merge(whole_numbers, f"ties@{density},scope=global")
        found = dict(merged.items())
    expected = merge_references.ties_together(by_module(whole_numbers), ONES, density)
    for path, want in zip(SHAPES, expected, strict=True):
        np.testing.assert_allclose(found[path], want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("density", [0.5, 0.13])
def test_global_ties_in_float32_is_as_exact(whole_numbers, density):
    """Whole numbers: float32 computes the coordinates without any error."""
    found = dict(merge(whole_numbers, f"ties@{density},scope=global").items())
    expected = merge_references.ties_together(by_module(whole_numbers), ONES, density)
    for path, want in zip(SHAPES, expected, strict=True):
        np.testing.assert_allclose(found[path], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("density", [0.7, 0.3])
def test_global_knots_trims_the_directions_of_all_modules_together(make_adapters, dense, density):
    adapters = make_adapters(ranks=(4, 2, 3), scales=(2.0, 0.5, 1.0), shapes=SHAPES)
    weights = {"de": 0.5, "en": 2.0, "ja": 1.25}
    with jax.enable_x64(True):
        found = dense(merge(adapters, f"ties_knots@{density},scope=global", weights=weights))
    bases = [merge_references.knots_coordinates(deltas) for deltas in by_module(adapters)]
    merged = merge_references.ties_together([c for _, c in bases], [0.5, 2.0, 1.25], density)
    for path, (u, _), m in zip(SHAPES, bases, merged, strict=True):
        # The merge is stored as the adapters are, in float32.
        np.testing.assert_allclose(found[path], u @ m, rtol=0, atol=2e-6 * np.abs(u @ m).max())


@pytest.mark.parametrize("density", [0.5, 0.2])
@pytest.mark.parametrize("sign", [1, -1])
def test_ties_official_is_the_official_procedure(whole_numbers, density, sign):
    """With zero sums, to which the commoner sign over all modules is given, + or -."""
    lean = {
        path: Factors(np.ones((1, i), np.float32), np.ones((o, 1), np.float32) * sign, 2.0)
        for path, (o, i) in SHAPES.items()
    }
    adapters = whole_numbers | {"lean": Adapter(lean)}
    modules = by_module(adapters)
    for bits in (32, 64):
        with jax.enable_x64(bits == 64):
            found = dict(merge(adapters, f"ties/official@{density}*0.4").items())
        expected = merge_references.ties_official(modules, density)
        if sign < 0:
            plus = merge_references.ties_official(modules, density, majority=1)
            assert any(np.any(x != y) for x, y in zip(expected, plus, strict=True))
        for path, want in zip(SHAPES, expected, strict=True):
            np.testing.assert_allclose(found[path], 0.4 * want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("density", [0.9, 0.5, 0.2])
def test_knots_official_is_the_official_procedure(make_adapters, dense, density):
    adapters = make_adapters(ranks=(4, 2, 3), scales=(2.0, 0.5, 1.0), shapes=SHAPES)
    zeroed = adapters["en"].modules
    path = "model.layers.2.k_proj"
    zeroed = zeroed | {path: Factors(zeroed[path].a, 0 * zeroed[path].b, 0.5)}
    adapters["en"] = Adapter(zeroed, base="base")
    with jax.enable_x64(True):
        found = dense(merge(adapters, f"knots/official@{density}"))
    expected = merge_references.knots_official(by_module(adapters, unscaled), density)
    for path, want in zip(SHAPES, expected, strict=True):
        np.testing.assert_allclose(found[path], want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_a_global_trim_of_one_module_is_that_modules(make_adapters):
    adapters = make_adapters(shapes={"a": (24, 20)})
    one, other = (merge(adapters, f"ties@0.37,scope={x}").delta("a") for x in ("module", "global"))
    np.testing.assert_array_equal(one, other)
