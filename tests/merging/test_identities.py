"""Identities that hold for all adapters, on drawn ones."""

import hypothesis
import jax
import merge_references
import numpy as np
import pytest
from hypothesis import strategies

from langmerge_jax.adapters import Adapter, Factors
from langmerge_jax.merging import merge

# A few shapes and ranks only: each combination is compiled.
SHAPES = {"layers.0.q": (10, 8), "layers.0.k": (3, 8)}
RANKS = [(2, 2, 2), (1, 4, 2)]
# Equal entries, zeros and entries of very different size are what goes wrong.
ENTRIES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "tied": lambda rng, shape: rng.integers(-2, 3, size=shape) / 2,
    "sparse": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.3),
    "uneven": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.integers(-4, 3, shape),
}


@strategies.composite
def drawn(draw, names=("de", "en", "ja"), ranks=None):
    """Adapters of any entries, scales as of LoRA (alpha / r) or rsLoRA (alpha / sqrt(r))."""
    rng = np.random.default_rng(draw(strategies.integers(0, 2**32 - 1)))
    adapters = {}
    for name, rank in zip(names, ranks or draw(strategies.sampled_from(RANKS)), strict=False):
        entries = ENTRIES[draw(strategies.sampled_from(sorted(ENTRIES)))]
        alpha = draw(strategies.sampled_from([1, 8, 64]))
        scale = alpha / (rank**0.5 if draw(strategies.booleans()) else rank)
        adapters[name] = Adapter(
            {
                path: Factors(
                    entries(rng, (rank, i)).astype(np.float32),
                    entries(rng, (o, rank)).astype(np.float32),
                    scale,
                )
                for path, (o, i) in SHAPES.items()
            }
        )
    return adapters


densities = strategies.sampled_from([0.9, 0.5, 0.29, 0.05])
positive = strategies.floats(0.1, 4.0)
gains = strategies.floats(-2.0, 2.0)


def weights_for(adapters, values):
    return dict(zip(adapters, values, strict=True))


def few(examples):
    return hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        # The fixtures hold no state.
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
    )


def in_float64(adapters, recipe, dense, **options):
    with jax.enable_x64(True):
        return dense(merge(adapters, recipe, dtype=np.float64, **options))


def assert_same(one, other, largest, rtol=1e-11):
    for path in one:
        atol = rtol * largest[path]
        np.testing.assert_allclose(one[path], other[path], rtol=0, atol=atol)


def largest_of(adapters):
    """The largest entry of any task vector, by module."""
    return {
        path: max(
            np.abs(merge_references.task_vector(a.modules[path])).max() for a in adapters.values()
        )
        for path in SHAPES
    }


@pytest.mark.parametrize(
    ("dropped", "plain"),
    [
        ("dare_ties@1", "ties@1"),
        ("dare_ties_knots@1", "ties_knots@1"),
        ("dare_ties_core@1", "ties_core@1"),
        ("della@1", "ties@1"),
        ("breadcrumbs_ties@1", "ties@1"),
        ("mergekit/dare_linear@1", "dare_linear@1"),
    ],
)
@few(6)
@hypothesis.given(adapters=drawn(), values=strategies.tuples(positive, positive, positive))
def test_density_one_drops_nothing_bit_for_bit(dense, dropped, plain, adapters, values):
    weights = weights_for(adapters, values)
    one, other = (dense(merge(adapters, x, weights=weights)) for x in (dropped, plain))
    for path in one:
        assert one[path].tobytes() == other[path].tobytes()


@few(10)
@hypothesis.given(adapters=drawn(), values=strategies.tuples(gains, gains, gains))
def test_a_concatenation_is_the_sum(dense, adapters, values):
    weights = weights_for(adapters, values)
    expected = {
        path: sum(
            w * merge_references.task_vector(adapters[n].modules[path]) for n, w in weights.items()
        )
        for path in SHAPES
    }
    for recipe in ("cat", "linear", "peft/cat"):
        assert_same(
            in_float64(adapters, recipe, dense, weights=weights), expected, largest_of(adapters)
        )


@few(10)
@hypothesis.given(adapters=drawn(), values=strategies.tuples(gains, gains, gains))
@pytest.mark.parametrize("space", ["knots", "knots_v", "core"])
def test_a_linear_consensus_commutes_with_every_basis(dense, space, adapters, values):
    """KnOTS or Core with a sum is task arithmetic, and with all of DARE's entries kept too."""
    weights = weights_for(adapters, values)
    expected = in_float64(adapters, "linear", dense, weights=weights)
    for recipe in (f"{space}:none:sum", f"{space}:dare:sum@1"):
        found = in_float64(adapters, recipe, dense, weights=weights)
        # KnOTS leaves out directions of singular values up to 1e-5.
        for path in found:
            atol = 1e-5 * sum(map(abs, values)) + 1e-11 * largest_of(adapters)[path]
            np.testing.assert_allclose(found[path], expected[path], rtol=0, atol=atol)


ALONE = [
    *("linear", "soup", "svd", "ties@1", "dare_ties@1", "dare_linear@1", "della@1"),
    *("breadcrumbs@1", "ties_knots@1", "ties_core@1", "ties/official@1", "mergekit/dare_ties@1"),
    *("peft/linear", "peft/ties@0.5", "peft/dare_linear@0.5", "peft/ties_svd@1"),
]


@pytest.mark.parametrize("recipe", ALONE)
@few(4)
@hypothesis.given(adapters=drawn(names=["ja"]))
def test_one_adapter_of_weight_one_comes_back(dense, recipe, adapters):
    """Whatever its alpha, rsLoRA too; `peft/...` on factors even at a density."""
    expected = {p: merge_references.task_vector(f) for p, f in adapters["ja"].modules.items()}
    found = dense(merge(adapters, recipe, weights={"ja": 1.0}))
    for path in expected:
        # In a basis, KnOTS leaves out what is below 1e-5.
        atol = 4e-6 * np.abs(expected[path]).max() + 2e-5 * ("knots" in recipe)
        np.testing.assert_allclose(found[path], expected[path], rtol=0, atol=atol)


@pytest.mark.parametrize(
    "recipe",
    [
        *("linear", "soup", "ties@{}", "dare_ties@{}", "ties_knots@{}", "dare_ties_knots@{}"),
        *("ties_core@{}", "della@{},epsilon=0.01", "breadcrumbs@{}", "sce@{}"),
        *("peft/ties@{}", "mergekit/dare_ties@{}", "ties/official@{}", "knots/official@{}"),
    ],
)
@few(3)
@hypothesis.given(
    adapters=drawn(ranks=(2, 2, 2)),
    density=densities,
    values=strategies.tuples(positive, positive, positive),
    order=strategies.permutations(["de", "en", "ja"]),
)
def test_the_order_of_adapters_changes_nothing(dense, recipe, adapters, density, values, order):
    weights = weights_for(adapters, values)
    turned = {name: adapters[name] for name in order}
    recipe = recipe.format(density)
    one = dense(merge(adapters, recipe, weights=weights))
    other = dense(merge(turned, recipe, weights={name: weights[name] for name in order}))
    for path in one:
        assert one[path].tobytes() == other[path].tobytes()


@few(10)
@hypothesis.given(
    adapters=drawn(),
    density=densities,
    values=strategies.tuples(positive, positive, positive),
)
def test_ties_on_any_adapters_is_the_paper(dense, adapters, density, values):
    weights = weights_for(adapters, values)
    with jax.enable_x64(True):
        found = dict(merge(adapters, f"ties@{density}", weights=weights).items())
    for path in found:
        deltas = [f.modules[path].delta(np.float64) for f in adapters.values()]
        expected = merge_references.ties(deltas, list(values), density)
        beside = near_a_threshold(deltas, list(values), density)
        error = np.abs(found[path] - expected)
        assert np.all((error <= 1e-11 * np.abs(deltas).max()) | beside)


def near_a_threshold(deltas, weights, density):
    """Entries whose fate hangs on the last bits: at the trim, or at an election of about zero.

    A product of float64 factors may be rounded in two ways, and entries that tie exactly in one
    then tie no more in the other.
    """
    beside = np.zeros(deltas[0].shape, bool)
    for x in deltas:
        last = np.sort(np.abs(x), axis=None)[x.size - max(1, int(density * x.size))]
        beside |= np.abs(np.abs(x) - last) <= 1e-12 * np.abs(x).max()
    trimmed = [merge_references.trim(x, int(density * x.size)) for x in deltas]
    total = merge_references.weighted_sum(trimmed, weights)
    size = merge_references.weighted_sum(np.abs(trimmed), weights)
    return beside | (np.abs(total) <= 1e-12 * size)


@few(10)
@hypothesis.given(adapters=drawn(), density=densities)
def test_zero_adapters_have_no_voice(dense, adapters, density):
    """TIES over adapters and one of zeros is TIES without it, in the basis of KnOTS too."""
    silent = Adapter({p: Factors(f.a, 0 * f.b, 1.0) for p, f in adapters["en"].modules.items()})
    for recipe in ("ties", "ties_knots"):
        alone = in_float64(adapters, f"{recipe}@{density}", dense)
        together = in_float64(adapters | {"zh": silent}, f"{recipe}@{density}", dense)
        assert_same(alone, together, largest_of(adapters), rtol=1e-9)


@few(10)
@hypothesis.given(adapters=drawn(), density=densities)
def test_opposite_adapters_cancel_by_the_rule_for_zero_sums(dense, adapters, density):
    """Of x and -x every sum is zero: + is elected, and the mean over it is |x|."""
    plus = adapters["en"]
    minus = Adapter({p: Factors(f.a, -f.b, f.scale) for p, f in plus.modules.items()})
    pair = {"en": plus, "minus en": minus}
    kept = dense(merge({"en": plus}, f"ties@{density}"))
    merged = dense(merge(pair, f"ties@{density}"))
    added = dense(merge(pair, "linear"))
    for path in merged:
        np.testing.assert_array_equal(merged[path], np.abs(kept[path]))
        assert np.all(np.abs(added[path]) <= 1e-14 * largest_of(pair)[path])


@few(10)
@hypothesis.given(
    adapters=drawn(), density=densities, factor=strategies.sampled_from([0.25, 2, 64])
)
def test_ties_goes_with_the_size_of_task_vectors(dense, adapters, density, factor):
    """All scales times a power of two is the merge times it, bit for bit."""
    larger = {
        name: Adapter({p: Factors(f.a, f.b, factor * f.scale) for p, f in one.modules.items()})
        for name, one in adapters.items()
    }
    for recipe in (f"ties@{density}", f"dare_ties@{density}", f"breadcrumbs@{density}"):
        one, other = (dense(merge(x, recipe)) for x in (adapters, larger))
        for path in one:
            np.testing.assert_array_equal(factor * one[path], other[path])
