"""The evaluation stage: which variants answer the test rows of a run."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from langmerge_jax.evaluation.metrics import LOWER_IS_BETTER
from langmerge_jax.evaluation.ngram import ngram_predictions
from langmerge_jax.files import read_json, read_jsonl, write_json, write_jsonl
from langmerge_jax.lifecycle.merging import of_languages, there
from langmerge_jax.lifecycle.prediction import (
    Answerer,
    Answers,
    journal_key,
    keep_rows,
    predict,
    run_inputs,
)
from langmerge_jax.lifecycle.run import Run
from langmerge_jax.lifecycle.stages import digest, digest_rows, identity, is_current, making
from langmerge_jax.lifecycle.variants import (
    ROUTED,
    Variant,
    chosen,
    individual,
    merge_variant,
    table_rows,
)
from langmerge_jax.merging import Recipe, parse

logger = logging.getLogger(__name__)

# Rows a language that the detector of languages is fitted on; more change little and take long.
DETECTOR_ROWS = 500


def evaluate(
    run: Run, wanted: Sequence[str] = (), extra: Mapping[str, Variant] = MappingProxyType({})
) -> dict[str, dict[str, str]]:
    """Answers the test rows with the variants of a run.

    Args:
      wanted: rows of the score table; none for all.
      extra: {name: variant} beside the run's own.

    Returns:
      {row of the score table: {language: variant that answered}}.

    Raises:
      InputError: for a row that is not there.
    """
    answerer = Answerer(run)
    found = chosen(table_rows(run, lambda: tune(run, answerer), extra), wanted)
    made = {name: make() for row in found.values() for name, make in row.variants.items()}
    predict(run, answerer, made)
    keep_rows(run)
    if ROUTED in found:
        route(run)
    return {name: row.parts for name, row in found.items()}


def tune(run: Run, answerer: Answerer) -> Recipe:
    """Picks recipe and lambda by the metric that decides, on validation rows.

    Candidates are `merge.tune_recipes` with every lambda of `merge.tune_lambda`; of equal scores
    the first wins. All tried are kept in `tuning.json`: {inputs, chosen, metric, on_validation}.
    """
    config = run.config.merge
    names, gains = list(config.tune_recipes), list(config.tune_lambda)
    candidates = [dataclasses.replace(parse(n), lam=gain) for n in names for gain in gains]
    variants = {r.name: merge_variant(run, of_languages(run, r), keep=False) for r in candidates}
    common = run_inputs(run, "validation")
    inputs = {name: common | variant.inputs for name, variant in variants.items()}
    path = run.home / "tuning.json"
    if path.exists() and (earlier := read_json(path))["inputs"] == digest(inputs):
        return parse(earlier["chosen"])
    metric = run.task.measures.names[0]
    tried: dict[str, float] = {}

    def finish(name: str, answers: Mapping[str, Answers]) -> None:
        tried[name] = float(np.mean([_value(run, x, of, metric) for x, of in answers.items()]))

    logger.info("try %d recipes on validation", len(variants))
    answerer.answer(variants, inputs, "validation", finish)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    # A recipe whose outputs define no score comes last.
    best = max(variants, key=lambda x: -np.inf if np.isnan(tried[x]) else sign * tried[x])
    write_json(
        path,
        {
            "inputs": digest(inputs),
            "chosen": best,
            "metric": metric,
            "on_validation": {x: None if np.isnan(tried[x]) else tried[x] for x in variants},
        },
    )
    answerer.journal.remove([journal_key(name, x) for name, x in inputs.items()])
    logger.info("best on validation: %s (%s %.4f)", best, metric, tried[best])
    return parse(best)


def _value(run: Run, language: str, answers: Answers, metric: str) -> float:
    examples = run.examples(language, "validation")
    outputs = [answers[i]["output"] for i in range(len(examples))]
    return run.task.measures.values(run.task.rows(examples, outputs))[metric]


def route(run: Run) -> None:
    """Writes `predictions/routed`: each row predicted by the adapter of its detected language.

    This is what a team would do without merging: keep the adapters apart and choose one for each
    text. The detector is fitted on training rows; how often it is right stands in `routing.json`.
    """
    inputs = run_inputs(run, "test") | {
        "individuals": {x: identity(there(run, x)) for x in run.languages},
        "detector": {x: digest_rows(run.examples(x, "train")) for x in run.languages},
    }
    if not is_current(run.predictions_directory(ROUTED), inputs):
        _route(run, inputs)
    accuracy = {}
    for language in run.languages:
        rows = read_jsonl(run.predictions_directory(ROUTED) / f"{language}.jsonl")
        accuracy[language] = sum(row["routed_to"] == language for row in rows) / len(rows)
    write_json(run.home / "routing.json", accuracy)
    logger.info("language detected rightly: %.2f %%", 100 * np.mean(list(accuracy.values())))


def _route(run: Run, inputs: Mapping[str, Any]) -> None:
    train = [e for x in run.languages for e in run.examples(x, "train")[:DETECTOR_ROWS]]
    test = {x: run.examples(x, "test") for x in run.languages}
    found = iter(
        ngram_predictions(
            [e.text for e in train],
            [e.language for e in train],
            [e.text for rows in test.values() for e in rows],
        )
    )
    with making(run.predictions_directory(ROUTED), inputs) as directory:
        for language, rows in test.items():
            detected = [next(found) for _ in rows]
            predicted = {
                x: read_jsonl(run.predictions_directory(individual(x)) / f"{language}.jsonl")
                for x in set(detected)
            }
            write_jsonl(
                directory / f"{language}.jsonl",
                (predicted[x][i] | {"routed_to": x} for i, x in enumerate(detected)),
            )
