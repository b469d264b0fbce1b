"""Scores of a variant, and of every bootstrap draw of its rows."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

# What is shown, by the name in files.
TITLES = {
    "macro_f1": "Macro F1",
    "precision": "Macro precision",
    "recall": "Macro recall",
    "accuracy": "Accuracy",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rouge1_ascii": "ROUGE-1 of ASCII",
    "rouge2_ascii": "ROUGE-2 of ASCII",
    "rougeL_ascii": "ROUGE-L of ASCII",
    "bertscore_f1": "BERTScore F1",
    "hallucination_rate": "Hallucination rate",
    "malformed": "Malformed outputs",
}
LOWER_IS_BETTER = frozenset({"hallucination_rate", "malformed"})


class Metrics(Protocol):
    """Metrics that are computed from the rows of a predictions file."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the metrics; the first is the one that decides."""

    def values(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Returns {metric: score}, NaN for one that these rows do not define."""

    def counts(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """Returns {metric: how many of the rows it is a score of}."""

    def replicates(
        self, rows: Sequence[Mapping[str, Any]], counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns {metric: float64 [samples]}, each draw scored as `values` scores the whole.

        Args:
          rows: n of them.
          counts: uint8 [samples, n], from `intervals.draws`.
        """


@dataclasses.dataclass(frozen=True)
class ClassificationMetrics:
    """Macro F1, precision and recall over labels, each in 0..1.

    A label that is never predicted counts with precision 0, one that never occurs with recall 0.
    An output that is no label (`parsed` is None) is right for none.

    Attributes:
      labels: k of them.
    """

    labels: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return ("macro_f1", "precision", "recall")

    def values(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        # Takes seconds to import, and only scores need it.
        import sklearn.metrics

        precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
            [row["reference"] for row in rows],
            ["" if row["parsed"] is None else row["parsed"] for row in rows],
            labels=list(self.labels),
            average="macro",
            zero_division=0,
        )
        return dict(zip(self.names, map(float, (f1, precision, recall)), strict=True))

    def counts(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        return dict.fromkeys(self.names, len(rows))

    def replicates(
        self, rows: Sequence[Mapping[str, Any]], counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        k = len(self.labels)
        place = {label: i for i, label in enumerate(self.labels)} | {None: k}
        cell = np.array([place[r["reference"]] * (k + 1) + place[r["parsed"]] for r in rows])
        where = np.eye(k * (k + 1), dtype=np.float32)[cell]
        parts = [part.astype(np.float32) @ where for part in np.array_split(counts, 40)]
        table = np.concatenate(parts).reshape(-1, k, k + 1).astype(np.float64)
        hit = np.diagonal(table, axis1=1, axis2=2)
        occurs, chosen = table.sum(2), table[..., :k].sum(1)

        def share(part, whole):
            return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

        by_label = (share(2 * hit, occurs + chosen), share(hit, chosen), share(hit, occurs))
        return {name: x.mean(1) for name, x in zip(self.names, by_label, strict=True)}


@dataclasses.dataclass(frozen=True)
class RowMetrics:
    """Means of what single rows score, and shares of sums over them.

    Attributes:
      of: {metric: (name of the score, name of the score its sum is divided by)}; without the
        second it is divided by the number of rows.
    """

    of: Mapping[str, tuple[str, str]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.of)

    def values(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        whole = np.ones((1, len(rows)), np.uint8)
        return {name: float(x[0]) for name, x in self.replicates(rows, whole).items()}

    def counts(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        return {
            name: sum(not below or row["scores"][below] > 0 for row in rows)
            for name, (_, below) in self.of.items()
        }

    def replicates(
        self, rows: Sequence[Mapping[str, Any]], counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        found = {}
        for name, (above, below) in self.of.items():
            part, whole = (_sums(rows, counts, score) for score in (above, below))
            out = np.full_like(part, np.nan)
            found[name] = np.divide(part, whole, out=out, where=whole > 0)
        return found


def _sums(rows: Sequence[Mapping[str, Any]], counts: np.ndarray, score: str) -> np.ndarray:
    """The sum of a score over each draw, float64 [samples]; without a score the number of rows."""
    values = np.array([row["scores"][score] if score else 1.0 for row in rows], np.float64)
    return np.concatenate([part @ values for part in np.array_split(counts, 40)])
