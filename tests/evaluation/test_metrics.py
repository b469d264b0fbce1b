"""Scores by hand."""

import pytest

from langmerge_jax.evaluation.metrics import ClassificationMetrics
from langmerge_jax.evaluation.ngram import ngram_predictions

LABELS = ("positive", "neutral", "negative")


def test_scores_of_a_confusion_worked_by_hand():
    truth = ["positive"] * 4 + ["negative"] * 2
    found = ["positive", "positive", "positive", "negative", "negative", "neutral"]
    rows = [{"reference": t, "parsed": p} for t, p in zip(truth, found, strict=True)]
    scores = ClassificationMetrics(LABELS).values(rows)
    # Precision 3/3, 0/1, 1/2; recall 3/4, none, 1/2; F1 6/7, 0, 1/2.
    assert scores["precision"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert scores["recall"] == pytest.approx((3 / 4 + 0 + 1 / 2) / 3)
    assert scores["macro_f1"] == pytest.approx((6 / 7 + 0 + 1 / 2) / 3)


def test_an_output_that_is_no_label_is_right_for_none():
    rows = [
        {"reference": "positive", "parsed": "positive"},
        {"reference": "positive", "parsed": None},
    ]
    scores = ClassificationMetrics(LABELS).values(rows)
    # It lowers recall and not precision.
    assert scores["precision"] == pytest.approx(1 / 3)
    assert scores["recall"] == pytest.approx(0.5 / 3)


def test_the_ngram_baseline_learns_words_in_scripts_with_and_without_spaces():
    texts = ["the good one", "a bad one", "良い画面です", "悪い画面です"] * 5
    labels = ["positive", "negative"] * 10
    assert ngram_predictions(texts, labels, ["so good", "so bad", "良い", "悪い"]) == [
        "positive",
        "negative",
        "positive",
        "negative",
    ]
