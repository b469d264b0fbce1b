"""Scores of predicted labels."""

from collections.abc import Sequence

import sklearn.metrics

METRICS = ("macro_f1", "precision", "recall")


def classification_scores(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """Returns macro-averaged F1, precision and recall over `labels`, each in 0..1.

    A label that is never predicted counts with precision 0, and one that never occurs with
    recall 0.
    """
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        truth, predicted, labels=list(labels), average="macro", zero_division=0
    )
    return {"macro_f1": float(f1), "precision": float(precision), "recall": float(recall)}
