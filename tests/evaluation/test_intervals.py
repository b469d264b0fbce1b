"""Bootstrap intervals and verdicts, checked by simulation."""

import numpy as np
import pytest

from langmerge_jax.evaluation.intervals import (
    Comparison,
    compare,
    draws,
    holm,
    interval,
)
from langmerge_jax.evaluation.metrics import ClassificationMetrics, RowMetrics

LABELS = ("negative", "neutral", "positive")


def predictor(rng, truth, accuracy):
    """Right with the given probability, else one of the other labels."""
    wrong = (truth + rng.integers(1, 3, size=len(truth))) % 3
    return np.where(rng.random(len(truth)) < accuracy, truth, wrong)


OF_LABELS = ClassificationMetrics(LABELS)


def rows(truth, chosen):
    """The rows of a predictions file, from numbers of labels."""
    return [
        {"reference": LABELS[t], "parsed": None if p is None else LABELS[p]}
        for t, p in zip(truth, chosen, strict=True)
    ]


def test_replicates_are_the_scores_of_the_rows_drawn():
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=40)  # one label never occurs
    chosen = predictor(rng, truth, 0.6)
    counts = draws(40, seed=[1], samples=20)
    assert (counts.sum(1) == 40).all()
    chosen = [None if i % 7 == 0 else x for i, x in enumerate(chosen)]  # Some are no label.
    found = OF_LABELS.replicates(rows(truth, chosen), counts)
    for i, row in enumerate(counts.astype(int)):
        picked = np.repeat(np.arange(40), row)
        expected = OF_LABELS.values(rows(truth[picked], [chosen[x] for x in picked]))
        assert {name: found[name][i] for name in OF_LABELS.names} == pytest.approx(expected)


def test_replicates_of_shares_are_those_of_the_rows_drawn():
    rng = np.random.default_rng(0)
    kept = [
        {"scores": {"part": float(p), "whole": float(p + q)}}
        for p, q in rng.integers(3, size=(9, 2))
    ]
    measures = RowMetrics({"share": ("part", "whole"), "mean": ("part", "")})
    counts = draws(9, seed=[1], samples=20)
    found = measures.replicates(kept, counts)
    for i, row in enumerate(counts.astype(int)):
        some = [kept[x]["scores"] for x in np.repeat(np.arange(9), row)]
        part, whole = sum(x["part"] for x in some), sum(x["whole"] for x in some)
        assert found["share"][i] == pytest.approx(part / whole)
        assert found["mean"][i] == pytest.approx(part / 9)
    nothing = [{"scores": {"part": 0.0, "whole": 0.0}}] * 9
    assert np.isnan(measures.values(nothing)["share"])
    assert np.isnan(measures.replicates(nothing, counts)["share"]).all()


def test_what_is_not_defined_is_neither_on_par_nor_worse():
    found = compare(float("nan"), np.full(400, np.nan), margin=0.01, n=100)
    assert found.verdict() == "undecided"
    assert found.deciding_n() is None
    assert np.isnan(interval(np.full(400, np.nan))).all()
    found = compare(0.001, np.full(400, np.nan), margin=0.01, n=100)
    assert found.deciding_n() is None
    # Every draw of one row is that row.
    assert compare(0.5, np.full(400, 0.5), margin=0.01, n=1).verdict() == "undecided"
    # Draws that define no score are left out.
    some = np.array([np.nan, *np.linspace(0, 1, 401)])
    assert interval(some) == pytest.approx((0.025, 0.975))


def test_interval_covers_the_true_score_as_often_as_it_says():
    """Macro F1 of a predictor that is right 9 times in 10 over three equal classes is 0.9."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        truth = rng.integers(3, size=500)
        chosen = predictor(rng, truth, 0.9)
        counts = draws(500, seed=[trial], samples=400)
        f1 = OF_LABELS.replicates(rows(truth, chosen), counts)["macro_f1"]
        low, high = interval(f1)
        covered += low <= 0.9 <= high
    # 95 % of 400 within three standard errors of a count, and a little for the few draws.
    assert 0.91 <= covered / 400 <= 0.98


def pooled(rng, trial, margin, only_first, only_second, n=2000, languages=5):
    """Compares two predictors, pooled over languages.

    They disagree where only one of them is right; on another 2.5 % both are wrong alike.
    """
    replicates, gaps = [], []
    for language in range(languages):
        truth = rng.integers(3, size=n)
        wrong = (truth + rng.integers(1, 3, size=n)) % 3
        where = rng.random(n)
        both = where < 0.025
        first = np.where(both | (where > 1 - only_second), wrong, truth)
        second = np.where(both | ((where > 0.025) & (where < 0.025 + only_first)), wrong, truth)
        counts = draws(n, seed=[trial, language], samples=400)
        scores = []
        for chosen in (first, second):
            of = rows(truth, chosen)
            found = OF_LABELS.replicates(of, counts)["macro_f1"]
            scores.append((OF_LABELS.values(of)["macro_f1"], found))
        gaps.append(scores[1][0] - scores[0][0])
        replicates.append(scores[1][1] - scores[0][1])
    return compare(
        float(np.mean(gaps)), np.mean(replicates, axis=0), margin=margin, n=n * languages
    )


def test_a_gap_of_four_points_is_found():
    rng = np.random.default_rng(1)
    verdicts = [pooled(rng, t, 0.01, 0.095, 0.055).verdict() for t in range(40)]
    assert verdicts.count("worse") >= 36


@pytest.mark.parametrize("margin", [0.0, 0.01])
def test_equally_good_variants_are_seldom_called_worse(margin):
    """They disagree on 15 % of the rows."""
    rng = np.random.default_rng(2)
    verdicts = [pooled(rng, t, margin, 0.075, 0.075).verdict() for t in range(100)]
    assert verdicts.count("worse") <= 5


def test_parity_is_claimed_seldom_at_the_margin_itself():
    rng = np.random.default_rng(3)
    verdicts = [pooled(rng, t, 0.01, 0.08, 0.07).verdict() for t in range(100)]
    assert verdicts.count("on par") <= 7
    assert verdicts.count("worse") <= 7


def test_the_same_predictions_are_on_par_with_themselves():
    found = compare(0.0, np.zeros(400), margin=0.01, n=100)
    assert found.verdict() == "on par"
    assert (found.low, found.high, found.p_worse) == (0, 0, 1)


def test_n_that_decides_grows_as_the_gap_nears_the_margin():
    near = Comparison(-0.012, -0.03, 0.006, 0.5, 0.5, margin=0.01, n=1000)
    far = Comparison(-0.02, -0.04, 0.0, 0.2, 0.8, margin=0.01, n=1000)
    assert far.deciding_n() == 4000  # 0.02 above it, to shrink to 0.01: twice as narrow
    assert near.deciding_n() == 81000
    # At 0.05 / 2 / 10 a normal interval is 2.807 / 1.960 times as wide.
    assert far.deciding_n(comparisons=10) == pytest.approx(4000 * (2.807 / 1.960) ** 2, rel=1e-3)
    assert Comparison(-0.01, -0.03, 0.01, 0.5, 0.5, margin=0.01, n=1000).deciding_n() is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
