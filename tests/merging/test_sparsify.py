"""Each sparsifier on given coordinates, against numpy written from its paper."""

import functools
import hashlib
import json

import jax
import jax.extend
import jax.numpy as jnp
import merge_references
import numpy as np
import pytest

from langmerge_jax.merging import merge, sparsify
from langmerge_jax.merging.threefry import random_uniform, threefry2x32

ROWS, COLUMNS, N = 13, 17, 13 * 17


uniform_draws = jax.jit(random_uniform, static_argnums=1)


@functools.partial(jax.jit, static_argnames=("name", "rescale"))
def run(name, x, numbers, rescale="inverse"):
    draw = sparsify.Draw(**numbers, rescale=rescale)
    return jnp.stack(list(sparsify.SPARSIFIERS[name](x, draw)))


def sparsified(name, x, *, rescale="inverse", columns=COLUMNS, **numbers):
    given = {"density": 0.5, "count": 0, "epsilon": 0.1, "outliers": 0} | numbers
    given |= {"columns": columns, "key_words": words(len(x))}
    given = {
        key: value
        if key == "key_words"
        else np.asarray(value, np.int32 if key in INTEGERS else x.dtype)
        for key, value in given.items()
    }
    return np.asarray(run(name, x, given, rescale)).astype(np.float64)


INTEGERS = ("count", "columns", "outliers")


def words(n):
    return np.array([sparsify.key_words(0, f"adapter {i}", "q_proj", 0) for i in range(n)])


def coordinates(dtype=np.float32, seed=0):
    """Three adapters: without equal entries, with many, and with zeros of both signs."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(ROWS, COLUMNS))
    tied = rng.integers(-3, 4, size=(ROWS, COLUMNS)) / 2
    zeros = np.where(rng.random((ROWS, COLUMNS)) < 0.8, -0.0, rng.normal(size=(ROWS, COLUMNS)))
    return np.stack([smooth, tied, zeros]).astype(dtype)


@pytest.fixture(params=[np.float32, np.float64])
def x(request):
    with jax.enable_x64(request.param is np.float64):
        yield coordinates(request.param)


COUNTS = [0, 1, 100, 110, 220]


@pytest.mark.parametrize("count", COUNTS)
def test_a_trim_keeps_exactly_the_count_and_changes_nothing_it_keeps(x, count):
    for found, v in zip(sparsified("magnitude", x, count=count), x, strict=True):
        np.testing.assert_array_equal(found, merge_references.trim(v, count))


@pytest.mark.parametrize("count", COUNTS)
def test_the_official_trim_keeps_one_more_and_all_that_tie(x, count):
    for found, v in zip(sparsified("magnitude_official", x, count=count), x, strict=True):
        np.testing.assert_array_equal(found, merge_references.trim_official(v, count))
    distinct = sparsified("magnitude_official", x, count=count)[0]
    assert np.count_nonzero(distinct) == count + 1


@pytest.mark.parametrize("density", [0.9, 0.5, 0.29, 0.01])
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.2, 0.9])
def test_breadcrumbs_drops_outliers_and_keeps_the_next(x, density, gamma):
    # More outliers than the density leaves room for are fewer outliers, as in mergekit.
    count = int(density * N)
    outliers = min(int(gamma * N), N - count)
    found = sparsified("breadcrumbs", x, count=count, outliers=outliers)
    for got, v in zip(found, x, strict=True):
        np.testing.assert_array_equal(got, merge_references.breadcrumbs(v, density, gamma))


@pytest.mark.parametrize("density", [0.9, 0.5, 0.07])
def test_dare_is_the_paper_under_its_own_mask(x, density):
    keep = np.asarray(uniform_draws(words(3), x.shape)) < np.float32(density)
    for got, v, mask in zip(sparsified("dare", x, density=density), x, keep, strict=True):
        expected = merge_references.dare(v.astype(np.float64), mask, density)
        np.testing.assert_allclose(got, expected, rtol=4 * np.finfo(x.dtype).eps, atol=0)
    for got, v, mask in zip(
        sparsified("dare", x, density=density, rescale="l1"), x, keep, strict=True
    ):
        expected = merge_references.restored(v.astype(np.float64), mask)
        np.testing.assert_allclose(got, expected, rtol=40 * np.finfo(x.dtype).eps, atol=0)


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.0), (0.5, 0.3), (0.2, 0.15)])
def test_della_is_the_paper_under_its_own_draws(x, density, epsilon):
    uniform = np.asarray(uniform_draws(words(3), x.shape))
    found = sparsified("della", x, density=density, epsilon=epsilon)
    for got, v, draws in zip(found, x.astype(np.float64), uniform, strict=True):
        expected = merge_references.della(v, draws, density, epsilon)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=0)
    found = sparsified("della", x, density=density, epsilon=epsilon, rescale="l1")
    for got, v, draws in zip(found, x.astype(np.float64), uniform, strict=True):
        keep = draws < merge_references.della_probabilities(v, density, epsilon)
        np.testing.assert_allclose(got, merge_references.restored(v, keep), rtol=1e-5, atol=0)


def test_dellas_survivors_are_right_on_average():
    """The mean over many seeds is the entry itself, and the largest of a row survive most."""
    x = np.tile(np.linspace(1, 2, COLUMNS, dtype=np.float32), (400, 4, 1))
    found = sparsified("della", x, density=0.5, epsilon=0.3)
    p = 0.2 + 0.6 * np.arange(COLUMNS) / (COLUMNS - 1)
    deviation = np.sqrt(p * (1 - p) / 1600)
    rate = np.mean(found != 0, axis=(0, 1))
    assert np.all(np.abs(rate - p) < 5 * deviation)
    mean = np.mean(found, axis=(0, 1))
    assert np.all(np.abs(mean - x[0, 0]) < 5 * deviation / p * x[0, 0])


@pytest.mark.parametrize(
    "name", ["dare", "della", "breadcrumbs", "magnitude", "magnitude_official", "sce"]
)
def test_padding_is_no_part_of_a_module(name):
    x = coordinates()
    padded = np.pad(x, ((0, 0), (0, 3), (0, 5)))
    numbers = {"count": 100, "outliers": 10, "epsilon": 0.3}
    whole = sparsified(name, padded, **numbers)
    np.testing.assert_array_equal(whole[:, ROWS:], 0)
    np.testing.assert_array_equal(whole[:, :, COLUMNS:], 0)
    np.testing.assert_array_equal(whole[:, :ROWS, :COLUMNS], sparsified(name, x, **numbers))


@pytest.mark.parametrize("density", [0.9, 0.5, 0.01])
def test_sce_keeps_what_varies_most(density):
    x = coordinates()
    x[:, :3] = x[0, :3]  # Entries on which the adapters agree vary not at all, however large.
    varying = int(np.count_nonzero(np.asarray(sparsify.variance_over_adapters(x))))
    assert varying == np.count_nonzero(np.any(x != x[0], axis=0))
    found = sparsified("sce", x, count=int(density * varying))
    expected = merge_references.sce_select(list(x.astype(np.float64)), density)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_adapters_that_agree_vary_exactly_not_at_all(n):
    """A mean of n equal floats is not always that float."""
    same = np.random.default_rng(0).normal(size=(1, ROWS, COLUMNS)).astype(np.float32)
    variance = jax.jit(sparsify.variance_over_adapters)(np.repeat(same, n, axis=0))
    assert not np.any(variance)


def test_the_count_is_pythons_int_of_density_times_entries(make_adapters):
    """0.29 * 100 is 28.999999999999996: 28 entries, in float32 too, where it would be 29."""
    adapters = make_adapters(shapes={"a": (10, 10)})
    one = {"en": adapters["en"]}
    for density, count in [(0.29, 28), (0.57, 56), (0.5, 50), (0.999, 99), (0.01, 1), (0.009, 0)]:
        assert int(density * 100) == count
        assert np.count_nonzero(merge(one, f"ties@{density}").delta("a")) == count
        crumbs = merge(one, f"breadcrumbs@{density},gamma=0").delta("a")
        assert np.count_nonzero(crumbs) == count
        both = merge(one, f"ties@{density},scope=global").delta("a")
        assert np.count_nonzero(both) == count


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers_of_its_authors(key, counter, expected):
    given = [tuple(map(np.uint32, pair)) for pair in (key, counter)]
    assert tuple(map(int, jax.jit(threefry2x32)(*given))) == expected


def test_a_draw_is_the_documented_function_of_names_row_and_column():
    """In whole numbers: the first 24 bits of the cipher's first word, under a hash of names."""

    def enciphered(key, x, y):
        keys, mask = (*key, key[0] ^ key[1] ^ 0x1BD11BDA), 2**32 - 1
        x, y = (x + keys[0]) & mask, (y + keys[1]) & mask
        for number in range(20):
            bits = (13, 15, 26, 6, 17, 29, 16, 24)[number % 8]
            x = (x + y) & mask
            y = x ^ (((y << bits) | (y >> (32 - bits))) & mask)
            if number % 4 == 3:
                group = number // 4 + 1
                x = (x + keys[group % 3]) & mask
                y = (y + keys[(group + 1) % 3] + group) & mask
        return x

    names = [(0, "en", "q_proj", 0), (-3, "日本語", "a.b", 1)]
    keys = np.array([sparsify.key_words(*one) for one in names])
    found = np.asarray(uniform_draws(keys, (2, 5, 70_000)))
    for index, name in enumerate(names):
        digest = hashlib.sha256(json.dumps(list(name)).encode()).digest()
        key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
        for row, column in ((0, 0), (0, 1), (1, 0), (4, 3), (3, 69_999)):
            expected = (enciphered(key, row, column) >> 8) / 2**24
            assert found[index, row, column] == expected


def test_threefry_is_that_of_jax():
    rng = np.random.default_rng(0)
    key, counter = rng.integers(0, 2**32, (2, 2, 1000), dtype=np.uint32)
    for i in range(3):
        expected = jax.extend.random.threefry_2x32(key[:, i], counter.ravel())
        found = jax.jit(threefry2x32)(tuple(key[:, i]), tuple(counter))
        np.testing.assert_array_equal(np.stack(found), expected.reshape(2, 1000))


@pytest.mark.parametrize("width", [1, 20, 129])
def test_a_part_drawn_alone_is_that_of_the_whole(width):
    keys = words(3)
    whole = np.asarray(uniform_draws(keys, (3, 200, width)))
    narrow = np.asarray(uniform_draws(keys, (3, 200, max(1, width // 2))))
    np.testing.assert_array_equal(narrow, whole[:, :, : narrow.shape[2]])
    part = np.asarray(uniform_draws(keys, (3, 100, width)))
    np.testing.assert_array_equal(part, whole[:, :100])
    alone = np.asarray(uniform_draws(keys[1:2], (1, 200, width)))
    np.testing.assert_array_equal(alone[0], whole[1])


def test_draws_are_uniform_and_of_no_kinship():
    """Even in each of 64 bins, uncorrelated over adapters, rows and columns."""
    draws = np.asarray(uniform_draws(words(3), (3, 256, 512)), np.float64)
    assert draws.min() >= 0
    assert draws.max() < 1
    bins = np.histogram(draws, bins=64, range=(0, 1))[0]
    expected = draws.size / 64
    chi_square = np.sum((bins - expected) ** 2 / expected)
    assert 63 - 5 * np.sqrt(126) < chi_square < 63 + 5 * np.sqrt(126)
    centred = (draws - 0.5) * np.sqrt(12)
    pairs = [
        (centred[0], centred[1]),
        (centred[:, 1:], centred[:, :-1]),
        (centred[:, :, 1:], centred[:, :, :-1]),
    ]
    for one, other in pairs:
        assert abs(np.mean(one * other)) < 5 / np.sqrt(one.size)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("magnitude", {"count": N}),
        ("magnitude_mergekit", {"count": N}),
        ("magnitude_official", {"count": N - 1}),
        ("dare", {"density": 1.0}),
        ("della", {"density": 1.0, "epsilon": 0.0}),
        ("breadcrumbs", {"count": N}),
        ("sce", {"count": N}),
    ],
)
def test_keeping_everything_changes_nothing(x, name, numbers):
    """So a merge at density 1 may leave the step out."""
    np.testing.assert_array_equal(sparsified(name, x, **numbers), x)
