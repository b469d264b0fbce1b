"""The `mergekit/...` recipes against mergekit's in-memory functions on the same task vectors."""

import itertools

import merge_references
import mergekit_models
import numpy as np
import pytest

from langmerge_jax.merging import merge

EQUAL = {"de": 1.0, "en": 1.0, "ja": 1.0}
MIXED = {"de": 0.5, "en": 2.0, "ja": 1.25}
SIGNED = {"de": 1.0, "en": -0.7, "ja": 0.4}
POSITIVE = pytest.mark.parametrize("weights", [EQUAL, MIXED], ids=["equal", "mixed"])
ANY = pytest.mark.parametrize("weights", [EQUAL, MIXED, SIGNED], ids=["equal", "mixed", "signed"])


@pytest.fixture
def adapters(make_adapters):
    return make_adapters(ranks=(2, 4, 3), scales=(2.0, 0.5, 1.0))


def task_vectors(adapters, path):
    return [merge_references.task_vector(adapters[name].modules[path]) for name in sorted(adapters)]


def assert_mergekits(found, adapters, method, weights=None, rtol=2e-6, **parameters):
    given = None if weights is None else [weights[name] for name in sorted(weights)]
    for path, delta in found.items():
        deltas = task_vectors(adapters, path)
        expected = mergekit_models.merged(deltas, method, given, **parameters)
        atol = rtol * np.abs(deltas).max()
        np.testing.assert_allclose(delta, expected, rtol=0, atol=atol)


@POSITIVE
def test_linear_is_the_average_of_weights(adapters, dense, weights):
    found = dense(merge(adapters, "mergekit/linear", weights=weights))
    assert_mergekits(found, adapters, "linear", weights)


@ANY
def test_task_arithmetic_is_mergekits(adapters, dense, weights):
    found = dense(merge(adapters, "mergekit/task_arithmetic*0.6", weights=weights))
    assert_mergekits(found, adapters, "task_arithmetic", weights, **{"lambda": 0.6})


@POSITIVE
@pytest.mark.parametrize("density", [1.0, 0.5, 0.13, 0.01, 0.001])
def test_ties_is_mergekits(adapters, dense, weights, density):
    found = dense(merge(adapters, f"mergekit/ties@{density}*1.5", weights=weights))
    assert_mergekits(found, adapters, "ties", weights, density=density, **{"lambda": 1.5})


@pytest.mark.parametrize("density", [1.0, 0.5, 0.13, 0.01])
def test_breadcrumbs_is_mergekits(adapters, dense, density):
    """With outliers, with fewer than asked for, and with none."""
    for gamma in (0.01, 0.2, 0.9, 0.0):
        found = dense(
            merge(adapters, f"mergekit/breadcrumbs@{density},gamma={gamma}", weights=SIGNED)
        )
        assert_mergekits(found, adapters, "breadcrumbs", SIGNED, density=density, gamma=gamma)


@ANY
@pytest.mark.parametrize("density", [1.0, 0.5, 0.13])
def test_breadcrumbs_ties_is_mergekits(adapters, dense, weights, density):
    """A negative weight turns the adapter's ballot too."""
    found = dense(
        merge(adapters, f"mergekit/breadcrumbs_ties@{density},gamma=0.1", weights=weights)
    )
    options = {"density": density, "gamma": 0.1}
    assert_mergekits(found, adapters, "breadcrumbs_ties", weights, **options)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.13])
@pytest.mark.parametrize("size", [1.0, 2.0**-10, 2.0**-16])
def test_sce_is_mergekits_also_where_it_weighs_adapters_alike(make_adapters, dense, density, size):
    """Below a mean square of 1e-6 in all it does, as with the deltas of LoRA."""
    scales = (2.0 * size, 0.5 * size, 1.0 * size)
    adapters = make_adapters(ranks=(2, 4, 3), scales=scales)
    found = dense(merge(adapters, f"mergekit/sce@{density}"))
    assert_mergekits(found, adapters, "sce", rtol=1e-5, select_topk=density)


NOTHING_DRAWN = {
    "dare_linear": ANY.args[1],
    "dare_ties": ANY.args[1],
    "della_linear": ANY.args[1],
    "della": POSITIVE.args[1],
}


@pytest.mark.parametrize(
    ("method", "weights"), [(m, w) for m, several in NOTHING_DRAWN.items() for w in several]
)
def test_random_methods_are_mergekits_where_nothing_is_drawn(adapters, dense, method, weights):
    found = dense(merge(adapters, f"mergekit/{method}@1", weights=weights))
    assert_mergekits(found, adapters, method, weights, density=1.0)


def masks(adapters, method, seed, path):
    """The mask that each adapter draws: where it alone is not zero after a merge."""
    alone = {
        name: merge({name: adapters[name]}, f"mergekit/{method}@0.4", seed=seed).delta(path)
        for name in sorted(adapters)
    }
    return [delta != 0 for delta in alone.values()]


RANDOM = [
    *itertools.product(("dare_linear", "dare_ties", "della_linear"), (EQUAL, MIXED, SIGNED)),
    *itertools.product(("della",), (EQUAL, MIXED)),  # It divides by its weights.
]


@pytest.mark.parametrize(("method", "weights"), RANDOM)
def test_under_our_masks_random_methods_are_mergekits(adapters, method, weights):
    """mergekit's own rescaling and consensus, on masks that cannot come from its random stream."""
    torch = mergekit_models.torch
    merged = merge(adapters, f"mergekit/{method}@0.4", weights=weights, seed=5)
    for path, found in merged.items():
        dropped = [
            mergekit_models.sparsify.rescaled_masked_tensor(
                torch.from_numpy(delta),
                torch.from_numpy(mask),
                mergekit_models.sparsify.RescaleNorm.l1,
            ).numpy()
            for delta, mask in zip(
                task_vectors(adapters, path), masks(adapters, method, 5, path), strict=True
            )
        ]
        given = [weights[name] for name in sorted(weights)]
        expected = mergekit_models.merged(dropped, method, given, density=1.0)
        atol = 2e-6 * np.abs(dropped).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_random_methods_keep_as_much_as_mergekits():
    """Both drop the same share of entries, DELLA's in the same places."""
    torch, tensor = (
        mergekit_models.torch,
        np.tile(np.linspace(1, 2, 50, dtype=np.float32), (4000, 1)),
    )
    torch.manual_seed(0)
    kept = mergekit_models.sparsify.della_magprune(torch.from_numpy(tensor), 0.4, 0.2)
    theirs = np.mean(kept.numpy() != 0, axis=0)
    p = merge_references.della_probabilities(tensor[:1], 0.4, 0.2)[0]
    assert np.all(np.abs(theirs - p) < 5 * np.sqrt(p * (1 - p) / 4000))


@pytest.mark.parametrize("density", [1.0, 0.5, 0.13])
def test_at_equal_weights_mergekit_is_peft(adapters, density):
    """And both are ours: they differ in how weights enter, and at equal ones in nothing."""
    peft_models = pytest.importorskip("peft_models", reason="peft is not installed")
    for path, found in merge(adapters, f"ties@{density}").items():
        deltas = task_vectors(adapters, path)
        kit = mergekit_models.merged(deltas, "ties", [1.0, 1.0, 1.0], density=density)
        peft = peft_models.ties_by_peft(deltas, [1.0, 1.0, 1.0], density)
        atol = 2e-6 * np.abs(deltas).max()
        np.testing.assert_allclose(kit, peft, rtol=0, atol=atol)
        np.testing.assert_allclose(found, peft, rtol=0, atol=atol)


def test_where_the_count_is_zero_mergekit_keeps_one_entry(adapters):
    """`mergekit/ties` does too, and `ties` keeps int(d N) = 0."""
    path = "model.layers.0.k_proj"
    deltas = task_vectors(adapters, path)
    kit = mergekit_models.merged(deltas[:1], "ties", [1.0], density=0.001)
    assert np.count_nonzero(kit) == 1
    one = {"de": adapters["de"]}
    assert np.count_nonzero(merge(one, "mergekit/ties@0.001").delta(path)) == 1
    assert np.count_nonzero(merge(one, "ties@0.001").delta(path)) == 0
