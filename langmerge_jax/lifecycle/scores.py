"""From predictions on disk to scores on disk, with how sure each one is."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from langmerge_jax.errors import InputError
from langmerge_jax.evaluation.intervals import compare, draws, holm, interval
from langmerge_jax.evaluation.metrics import LOWER_IS_BETTER
from langmerge_jax.evaluation.ngram import ngram_predictions
from langmerge_jax.files import read_json, read_jsonl, write_json
from langmerge_jax.lifecycle.run import COMBINED, Run
from langmerge_jax.lifecycle.stages import digest, digest_rows
from langmerge_jax.lifecycle.variants import BASE, INDIVIDUAL, ROUTED, individual
from langmerge_jax.progress import track
from langmerge_jax.tasks.labels import LabelTask

logger = logging.getLogger(__name__)

ALL = "all"
ANSWERED = "answered.json"


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of one variant on one language.

    Attributes:
      metrics: {metric: (value, bootstrap replicates [samples])}; the first decides.
      counts: {metric: rows that it is a score of}.
    """

    metrics: dict[str, tuple[float, np.ndarray]]
    counts: dict[str, int]

    @property
    def n(self) -> int:
        """The rows that the metric that decides is a score of."""
        return next(iter(self.counts.values()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields one score row a metric; None stands for a number that is not defined."""
        for metric, (value, replicates) in self.metrics.items():
            low, high = interval(replicates)
            yield {
                "metric": metric,
                "value": defined(value),
                "n": self.counts[metric],
                "low": defined(low),
                "high": defined(high),
            }


class Scorer:
    """Scores predictions of a run, every variant on the same bootstrap draws."""

    def __init__(self, run: Run):
        self._run = run
        self._draws: dict[tuple[str, int], np.ndarray] = {}

    def score(self, rows: list[dict[str, Any]], language: str) -> Scored:
        """Scores the rows of a predictions file."""
        measures, n = self._run.task.measures, len(rows)
        if (language, n) not in self._draws:
            self._draws[language, n] = draws(n, seed=[0, *language.encode()])
        values = measures.values(rows)
        replicates = measures.replicates(rows, self._draws[language, n])
        found = {name: (values[name], replicates[name]) for name in measures.names}
        return Scored(found, measures.counts(rows))

    def read(self, found: Mapping[str, str]) -> dict[str, Scored]:
        """Scores predictions on disk.

        Args:
          found: {language: variant that predicted it}.

        Returns:
          {language, and `all` for the mean over languages: Scored}.
        """
        scored = {}
        for language, variant in found.items():
            path = self._run.predictions_directory(variant) / f"{language}.jsonl"
            if not path.exists():
                raise InputError(f"{path}: no predictions; run the evaluate door first")
            scored[language] = self.score(read_jsonl(path), language)
        return with_mean(scored)


def defined(value: float) -> float | None:
    """Returns a number as JSON has it, which knows none that are not finite."""
    return value if math.isfinite(value) else None


def with_mean(scored: dict[str, Scored]) -> dict[str, Scored]:
    """Adds the mean over languages as `all`; languages are drawn independently of each other."""
    parts = list(scored.values())
    means, counts = {}, {}
    for metric in parts[0].metrics:
        values = [part.metrics[metric] for part in parts]
        means[metric] = (
            sum(value for value, _ in values) / len(values),
            np.mean([replicates for _, replicates in values], axis=0),
        )
        counts[metric] = sum(part.counts[metric] for part in parts)
    return scored | {ALL: Scored(means, counts)}


def _rows(key: str, name: str, scored: Mapping[str, Scored]) -> list[dict[str, Any]]:
    return [
        {key: name, "language": language, **row}
        for language, some in scored.items()
        for row in some.rows()
    ]


def score(run: Run, found: Mapping[str, Mapping[str, str]]) -> None:
    """Scores predictions.

    Writes `scores.json`, rows {variant, language, metric, value, n, low, high} with the mean over
    languages as language `all`; `matrix.json`, rows {adapter, language, …} of every individual
    adapter on every language, if they are among what is scored; and `comparisons.json`, each
    variant against `combined`, if that is. `answered.json` keeps what was scored.

    Args:
      found: {row of the score table: {language: variant that answered}}.
    """
    languages, scorer = run.languages, Scorer(run)
    write_json(run.home / ANSWERED, found)
    scored = {name: scorer.read(parts) for name, parts in found.items()}
    write_json(
        run.home / "scores.json",
        [r for name in scored for r in _rows("variant", name, scored[name])],
    )
    if INDIVIDUAL in found:
        apart = {x: scorer.read(dict.fromkeys(languages, individual(x))) for x in languages}
        rows = [r for name, one in apart.items() for r in _rows("adapter", name, one)]
        write_json(run.home / "matrix.json", rows)
    else:
        (run.home / "matrix.json").unlink(missing_ok=True)
    others = {name: some for name, some in scored.items() if name not in (BASE, COMBINED)}
    if COMBINED in scored and others:
        recipes = set(others) - {INDIVIDUAL, ROUTED}
        margin = run.config.evaluate.margin
        rows = comparisons(others, scored[COMBINED], recipes, margin)
        write_json(run.home / "comparisons.json", rows)
    else:
        (run.home / "comparisons.json").unlink(missing_ok=True)


def comparisons(
    variants: Mapping[str, Mapping[str, Scored]],
    reference: Mapping[str, Scored],
    family: set[str],
    margin: float,
) -> list[dict[str, Any]]:
    """Compares variants with `combined` by the metric that decides, a language and pooled.

    Args:
      variants: {variant: {language: Scored}}.
      reference: {language: Scored} of `combined`.
      family: variants that are alternatives of each other: their p-values are adjusted together,
        in each language, and their verdicts follow the adjusted ones.
      margin: by how much a variant may be worse and still be on par.

    Returns:
      Rows {variant, language, metric, reference, difference, low, high, margin, n, p_worse, p_par,
      p_worse_holm, p_par_holm (None outside the family), verdict, deciding_n}; a difference is that
      of the scores, whether more of them is better or worse.
    """
    metric = next(iter(next(iter(reference.values())).metrics))
    sign = -1 if metric in LOWER_IS_BETTER else 1
    rows = []
    for language, base in reference.items():
        found = {}
        for name, scored in variants.items():
            value, replicates = scored[language].metrics[metric]
            other, others = base.metrics[metric]
            better, draws_of = sign * (value - other), sign * (replicates - others)
            n = min(base.n, scored[language].n)
            found[name] = compare(better, draws_of, margin=margin, n=n)
        members = [name for name in found if name in family]
        worse = dict(zip(members, holm([found[n].p_worse for n in members]), strict=True))
        par = dict(zip(members, holm([found[n].p_par for n in members]), strict=True))
        for name, one in found.items():
            verdict = one.verdict(p_worse=worse.get(name), p_par=par.get(name))
            ends = sorted([sign * one.low + 0.0, sign * one.high + 0.0])
            rows.append(
                {
                    "variant": name,
                    "language": language,
                    "metric": metric,
                    "reference": COMBINED,
                    "difference": defined(sign * one.difference + 0.0),
                    "low": defined(ends[0]),
                    "high": defined(ends[1]),
                    "margin": margin,
                    "n": one.n,
                    "p_worse": one.p_worse,
                    "p_par": one.p_par,
                    "p_worse_holm": worse.get(name),
                    "p_par_holm": par.get(name),
                    "verdict": verdict,
                    "deciding_n": one.deciding_n(max(len(members) * (name in family), 1))
                    if verdict == "undecided"
                    else None,
                }
            )
    return rows


def score_baselines(run: Run) -> None:
    """Scores what knows no language: the commonest label, and character n-grams; of training rows.

    Writes `baselines.json`: {inputs, scores}, rows as in `scores.json`.

    Raises:
      InputError: if the task's answers are not labels.
    """
    if not isinstance(run.task, LabelTask):
        raise InputError(
            f"evaluate.baselines: {run.config.task.name} has no labels to fit a classifier to"
        )
    path = run.home / "baselines.json"
    splits = ("train", "test")
    inputs = digest([digest_rows(run.examples(x, s)) for x in run.languages for s in splits])
    if path.exists() and read_json(path)["inputs"] == inputs:
        logger.info("baselines there already, skipped")
        return
    scorer = Scorer(run)
    scored: dict[str, dict[str, Scored]] = {"majority": {}, "char n-gram": {}}
    for language in track(run.languages, "fit baselines", len(run.languages), "language"):
        train, test = run.examples(language, "train"), run.examples(language, "test")
        labels = [e.target for e in train]
        words = dict(zip(run.task.labels, run.task.words(language), strict=True))
        outputs = {
            "majority": [max(run.task.labels, key=labels.count)] * len(test),
            "char n-gram": ngram_predictions(
                ["\n".join([e.text, *e.choices]) for e in train],
                labels,
                ["\n".join([e.text, *e.choices]) for e in test],
            ),
        }
        for name, found in outputs.items():
            rows = run.task.rows(test, [words[label] for label in found])
            scored[name][language] = scorer.score(rows, language)
    rows = [r for name, one in scored.items() for r in _rows("variant", name, with_mean(one))]
    write_json(path, {"inputs": inputs, "scores": rows})
