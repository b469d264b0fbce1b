"""Each consensus on given coordinates, against numpy written from its paper and against PEFT."""

import itertools

import jax
import merge_references
import numpy as np
import peft_models
import pytest

from langmerge_jax.merging import consensus

WEIGHTS = {
    "equal": [1.0, 1.0, 1.0, 1.0],
    "mixed": [0.5, 2.0, 1.25, 0.1],
    "signed": [1.0, -0.75, 0.0, 2.0],
}


def ballots(dtype=np.float64, seed=0):
    """Four adapters whose entries are halves: zeros, zero sums and unanimous entries abound."""
    x = np.random.default_rng(seed).integers(-2, 3, size=(4, 40, 25)) / 2
    return x.astype(dtype)


VOTES = list(
    itertools.product(
        ("total", "frequency"), ("weighted", "unweighted"), ("weights", "count", "none")
    )
)


# Weights that the mean of the agreeing divides by are not negative.
BALLOTS = [(v, w) for v in VOTES for w in WEIGHTS if not (v[2] == "weights" and w == "signed")]


@pytest.mark.parametrize("zero_sign", [1.0, -1.0])
@pytest.mark.parametrize(("vote", "weights"), BALLOTS, ids=str)
def test_every_vote_is_the_reference_on_zeros_and_zero_sums_too(vote, weights, zero_sign):
    x, w = ballots(), np.array(WEIGHTS[weights])
    assert np.any((merge_references.weighted_sum(x, w) == 0) & np.any(x != 0, axis=0))
    with jax.enable_x64(True):
        merged = consensus.ties(x, w, consensus.Vote(*vote), zero_sign)
    expected = merge_references.vote(x, w, *vote, zero_sign)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("weights", ["equal", "mixed"])
def test_the_default_is_the_paper_entry_by_entry(weights):
    x, w = ballots(np.float32), np.array(WEIGHTS[weights], np.float32)
    expected = merge_references.elect_and_merge(list(x.astype(np.float64)), w.astype(np.float64))
    np.testing.assert_allclose(consensus.ties(x, w), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_unweighted_count_is_pefts_own_function(weights, sign):
    x, w = ballots(), np.array(WEIGHTS[weights])
    vote = consensus.Vote(sign, "unweighted", "count")
    with jax.enable_x64(True):
        merged = consensus.ties(x, w, vote)
    expected = peft_models.ties_by_peft(x, w, 1.0, sign)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("vote", VOTES, ids="-".join)
def test_one_voice_is_heard_as_it_is(vote):
    x = np.random.default_rng(0).normal(size=(1, 7, 5)).astype(np.float32)
    merged = consensus.ties(x, np.ones(1, np.float32), consensus.Vote(*vote))
    np.testing.assert_array_equal(merged, x[0])


def test_sums_and_means_are_those_of_numpy():
    x = np.random.default_rng(0).normal(size=(4, 9, 8))
    for weights in WEIGHTS.values():
        w = np.array(weights)
        with jax.enable_x64(True):
            total, mean = consensus.weighted_sum(x, w), consensus.mean(x, w)
        np.testing.assert_allclose(total, np.tensordot(w, x, 1), rtol=0, atol=1e-14)
        np.testing.assert_allclose(mean, merge_references.soup(x, w), rtol=0, atol=1e-14)


@pytest.mark.parametrize("weights", ["equal", "mixed"])
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_sce_weighs_by_mean_squares_however_small(weights, size):
    """1e-4 is the size of a LoRA's entries, where mergekit falls back to equal weights."""
    x = size * ballots() * np.array([1.0, 3.0, 0.5, 1.0])[:, None, None]
    w = np.array(WEIGHTS[weights])
    with jax.enable_x64(True):
        merged = consensus.sce(x, w, x[0].size)
    expected = merge_references.sce(list(x), 1.0, w)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-14 * size)


def test_sce_of_nothing_is_nothing():
    zeros = np.zeros((3, 4, 5), np.float32)
    np.testing.assert_array_equal(
        consensus.sce(zeros, np.ones(3, np.float32), zeros[0].size), zeros[0]
    )
