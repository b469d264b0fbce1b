"""From predictions on disk to scores on disk."""

import json
import logging
from collections.abc import Iterator

from langmerge_jax.errors import InputError
from langmerge_jax.evaluation.metrics import METRICS, classification_scores
from langmerge_jax.evaluation.ngram import ngram_predictions
from langmerge_jax.files import write_json
from langmerge_jax.lifecycle.evaluation import BASE, INDIVIDUAL, TUNED
from langmerge_jax.lifecycle.run import COMBINED, Run
from langmerge_jax.merging import parse
from langmerge_jax.progress import track

logger = logging.getLogger(__name__)

ALL = "all"


def _read(run: Run, variant: str, language: str) -> list[dict]:
    path = run.predictions_directory(variant) / f"{language}.jsonl"
    if not path.exists():
        raise InputError(f"{path}: no predictions; run the evaluate door first")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _rows(name: str, key: str, by_language: dict[str, tuple[dict, int]]) -> Iterator[dict]:
    """Yields one score row a language and metric, then the mean over languages as `all`."""
    total = sum(n for _, n in by_language.values())
    for metric in METRICS:
        values = {language: scores[metric] for language, (scores, _) in by_language.items()}
        for language, value in values.items():
            n = by_language[language][1]
            yield {key: name, "language": language, "metric": metric, "value": value, "n": n}
        mean = sum(values.values()) / len(values)
        yield {key: name, "language": ALL, "metric": metric, "value": mean, "n": total}


def _score(run: Run, found: dict[str, str]) -> dict[str, tuple[dict[str, float], int]]:
    """Scores predictions; `found` is {language: variant that predicted it}."""
    scored = {}
    for language, variant in found.items():
        rows = _read(run, variant, language)
        truth, chosen = [r["label"] for r in rows], [r["prediction"] for r in rows]
        scored[language] = (classification_scores(truth, chosen, run.task.labels), len(rows))
    return scored


def score(run: Run) -> None:
    """Scores every variant's predictions.

    Writes `scores.json`, rows {variant, language, metric, value, n} with the mean over languages
    as language `all`, and `matrix.json`, rows {adapter, language, metric, value, n} of every
    individual adapter on every language.
    """
    languages = run.config.languages
    found = {BASE: dict.fromkeys(languages, BASE)}
    if run.adapter_directory(COMBINED).exists():
        found[COMBINED] = dict.fromkeys(languages, COMBINED)
    found[INDIVIDUAL] = {language: f"{INDIVIDUAL}-{language}" for language in languages}
    for name in run.config.merge.recipes:
        found[parse(name).name] = dict.fromkeys(languages, parse(name).name)
    if run.config.merge.tune_lambda:
        found[TUNED] = dict.fromkeys(languages, TUNED)
    scores = [row for name in found for row in _rows(name, "variant", _score(run, found[name]))]
    write_json(run.workdir / "scores.json", scores)
    individuals = {name: dict.fromkeys(languages, f"{INDIVIDUAL}-{name}") for name in languages}
    write_json(
        run.workdir / "matrix.json",
        [
            row
            for name, variants in individuals.items()
            for row in _rows(name, "adapter", _score(run, variants))
        ],
    )


def score_ngrams(run: Run) -> None:
    """Fits a character n-gram classifier a language on the training rows; writes `ngram.json`."""
    path = run.workdir / "ngram.json"
    if path.exists():
        logger.info("n-gram baseline there already, skipped")
        return
    scored = {}
    for language in track(
        run.config.languages, "fit n-gram baseline", len(run.config.languages), "language"
    ):
        train, test = run.examples(language, "train"), run.examples(language, "test")
        chosen = ngram_predictions(
            [e.text for e in train], [e.label for e in train], [e.text for e in test]
        )
        truth = [e.label for e in test]
        scored[language] = (classification_scores(truth, chosen, run.task.labels), len(test))
    write_json(path, list(_rows("char n-gram", "variant", scored)))
