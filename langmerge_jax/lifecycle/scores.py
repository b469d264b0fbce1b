"""From predictions on disk to scores on disk, with how sure each one is."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from langmerge_jax.errors import InputError
from langmerge_jax.evaluation.intervals import (
    classification_replicates,
    compare,
    draws,
    holm,
    interval,
)
from langmerge_jax.evaluation.metrics import METRICS, classification_scores
from langmerge_jax.evaluation.ngram import ngram_predictions
from langmerge_jax.files import read_json, read_jsonl, write_json
from langmerge_jax.lifecycle.evaluation import BASE, INDIVIDUAL, ROUTED, TUNED
from langmerge_jax.lifecycle.run import COMBINED, Run
from langmerge_jax.lifecycle.stages import digest, digest_rows
from langmerge_jax.merging import parse
from langmerge_jax.progress import track

logger = logging.getLogger(__name__)

ALL = "all"


class Scorer:
    """Scores predictions of a run, every variant on the same bootstrap draws."""

    def __init__(self, run: Run):
        self._run = run
        self._draws: dict[tuple[str, int], np.ndarray] = {}

    def score(self, truth: list[str], chosen: list[str], language: str) -> dict[str, tuple]:
        """Returns {metric: (value, replicates [samples])}."""
        labels, n = self._run.task.labels, len(truth)
        if (language, n) not in self._draws:
            self._draws[language, n] = draws(n, seed=[0, *language.encode()])
        values = classification_scores(truth, chosen, labels)
        replicates = classification_replicates(truth, chosen, labels, self._draws[language, n])
        return {metric: (values[metric], replicates[metric]) for metric in METRICS}

    def read(self, found: Mapping[str, str]) -> dict[str, "Scored"]:
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
            rows = read_jsonl(path)
            truth, chosen = [r["label"] for r in rows], [r["prediction"] for r in rows]
            scored[language] = Scored(len(rows), self.score(truth, chosen, language))
        return with_mean(scored)


class Scored:
    """Scores of one variant on one language.

    Attributes:
      n: rows.
      metrics: {metric: (value, bootstrap replicates [samples])}.
    """

    def __init__(self, n: int, metrics: dict[str, tuple[float, np.ndarray]]):
        self.n, self.metrics = n, metrics

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields one score row a metric."""
        for metric, (value, replicates) in self.metrics.items():
            low, high = interval(replicates)
            yield {"metric": metric, "value": value, "n": self.n, "low": low, "high": high}


def with_mean(scored: dict[str, Scored]) -> dict[str, Scored]:
    """Adds the mean over languages as `all`; languages are drawn independently of each other."""
    parts = list(scored.values())
    means = {}
    for metric in METRICS:
        values = [part.metrics[metric] for part in parts]
        means[metric] = (
            sum(value for value, _ in values) / len(values),
            np.mean([replicates for _, replicates in values], axis=0),
        )
    return scored | {ALL: Scored(sum(part.n for part in parts), means)}


def _rows(key: str, name: str, scored: Mapping[str, Scored]) -> list[dict[str, Any]]:
    return [
        {key: name, "language": language, **row}
        for language, some in scored.items()
        for row in some.rows()
    ]


def score(run: Run) -> None:
    """Scores every variant's predictions.

    Writes `scores.json`, rows {variant, language, metric, value, n, low, high} with the mean over
    languages as language `all`; `matrix.json`, rows {adapter, language, …} of every individual
    adapter on every language; and `comparisons.json`, each variant against `combined`.
    """
    languages, scorer = run.languages, Scorer(run)
    recipes = [parse(name).name for name in run.config.merge.recipes]
    if run.config.merge.tune_lambda:
        recipes.append(TUNED)
    found = {BASE: dict.fromkeys(languages, BASE)}
    if run.adapter_directory(COMBINED).exists():
        found[COMBINED] = dict.fromkeys(languages, COMBINED)
    found[INDIVIDUAL] = {language: f"{INDIVIDUAL}-{language}" for language in languages}
    if len(languages) > 1:
        found[ROUTED] = dict.fromkeys(languages, ROUTED)
    found |= {name: dict.fromkeys(languages, name) for name in recipes}
    scored = {name: scorer.read(variants) for name, variants in found.items()}
    write_json(
        run.home / "scores.json",
        [r for name in scored for r in _rows("variant", name, scored[name])],
    )
    individuals = {
        name: scorer.read(dict.fromkeys(languages, f"{INDIVIDUAL}-{name}")) for name in languages
    }
    write_json(
        run.home / "matrix.json",
        [r for name in individuals for r in _rows("adapter", name, individuals[name])],
    )
    if COMBINED not in scored:
        (run.home / "comparisons.json").unlink(missing_ok=True)
    else:
        others = {name: some for name, some in scored.items() if name not in (BASE, COMBINED)}
        write_json(
            run.home / "comparisons.json",
            comparisons(others, scored[COMBINED], set(recipes), run.config.evaluate.margin),
        )


def comparisons(
    variants: Mapping[str, Mapping[str, Scored]],
    reference: Mapping[str, Scored],
    family: set[str],
    margin: float,
    metric: str = METRICS[0],
) -> list[dict[str, Any]]:
    """Compares variants with `combined`, language by language and pooled.

    Args:
      variants: {variant: {language: Scored}}.
      reference: {language: Scored} of `combined`.
      family: variants that are alternatives of each other: their p-values are adjusted together,
        in each language, and their verdicts follow the adjusted ones.
      margin: by how much a variant may be worse and still be on par.
      metric: what is compared.

    Returns:
      Rows {variant, language, metric, reference, difference, low, high, margin, n, p_worse, p_par,
      p_worse_holm, p_par_holm (None outside the family), verdict, deciding_n}.
    """
    rows = []
    for language, base in reference.items():
        found = {}
        for name, scored in variants.items():
            value, replicates = scored[language].metrics[metric]
            other, others = base.metrics[metric]
            found[name] = compare(value - other, replicates - others, margin=margin, n=base.n)
        members = [name for name in found if name in family]
        worse = dict(zip(members, holm([found[n].p_worse for n in members]), strict=True))
        par = dict(zip(members, holm([found[n].p_par for n in members]), strict=True))
        for name, one in found.items():
            verdict = one.verdict(p_worse=worse.get(name), p_par=par.get(name))
            rows.append(
                {
                    "variant": name,
                    "language": language,
                    "metric": metric,
                    "reference": COMBINED,
                    "difference": one.difference,
                    "low": one.low,
                    "high": one.high,
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


def score_ngrams(run: Run) -> None:
    """Fits a character n-gram classifier a language on the training rows; writes `ngram.json`."""
    path = run.home / "ngram.json"
    splits = ("train", "test")
    inputs = digest([digest_rows(run.examples(x, s)) for x in run.languages for s in splits])
    if path.exists() and read_json(path)["inputs"] == inputs:
        logger.info("n-gram baseline there already, skipped")
        return
    scorer, scored = Scorer(run), {}
    for language in track(run.languages, "fit n-gram baseline", len(run.languages), "language"):
        train, test = run.examples(language, "train"), run.examples(language, "test")
        chosen = ngram_predictions(
            [e.text for e in train], [e.label for e in train], [e.text for e in test]
        )
        scored[language] = Scored(
            len(test), scorer.score([e.label for e in test], chosen, language)
        )
    rows = _rows("variant", "char n-gram", with_mean(scored))
    write_json(path, {"inputs": inputs, "scores": rows})
