"""The evaluation stage: every variant on every language, as predictions on disk."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from langmerge_jax.adapters import Adapter
from langmerge_jax.config import to_json
from langmerge_jax.evaluation.metrics import classification_scores
from langmerge_jax.evaluation.ngram import ngram_predictions
from langmerge_jax.evaluation.predict import ChoiceScorer
from langmerge_jax.files import read_json, read_jsonl, write_json, write_jsonl
from langmerge_jax.lifecycle.merging import merge_inputs, merged, there, trained
from langmerge_jax.lifecycle.run import COMBINED, Run
from langmerge_jax.lifecycle.stages import digest, digest_rows, identity, is_current, making
from langmerge_jax.merging import DenseDelta, Recipe, parse
from langmerge_jax.models.fold import fold
from langmerge_jax.models.stacking import spec_of, stack
from langmerge_jax.progress import Progress

logger = logging.getLogger(__name__)

# Rows a language that the detector of languages is fitted on; more change little and take long.
DETECTOR_ROWS = 500

BASE, INDIVIDUAL, ROUTED, TUNED = "base", "individual", "routed", "tuned"


class Evaluator:
    """Predicts with anything that stands on a run's base, keeping compiled programs and prompts."""

    def __init__(self, run: Run):
        self._run = run
        options = run.task.options(run.base.tokenizer)
        self._scorer = ChoiceScorer(
            run.base, options, run.config.evaluate.batch_size, run.config.train.buckets
        )
        self._prompts: dict[tuple[str, str], list] = {}

    def rows(self, split: str) -> int:
        """Returns how many rows a split has over all languages."""
        return sum(len(self._run.examples(x, split)) for x in self._run.languages)

    def predict(
        self, top: Adapter | DenseDelta | None, split: str, done: Callable[[int], None]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (language, float32 log-likelihoods [row, label]).

        Args:
          top: what stands on the base: nothing, an adapter, or a dense delta, which is folded
            into a copy of the weights.
          split: of the data.
          done: called with the number of rows finished.
        """
        base, task = self._run.base, self._run.task
        weights = {}
        if isinstance(top, Adapter):
            spec = spec_of([top])
            weights = {"spec": spec, "lora": stack({"": top}, base.config, spec, base.dtype)}
        elif top is not None:
            weights = {"params": fold(base.params, top.items())}
        for language in self._run.languages:
            key = (language, split)
            if key not in self._prompts:
                encoded = task.encode(base.tokenizer, self._run.examples(*key))
                self._prompts[key] = [example.prompt for example in encoded]
            yield language, self._scorer(self._prompts[key], done=done, **weights)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One thing that gets evaluated.

    Attributes:
      inputs: what it is made from.
      load: gives what stands on the base.
    """

    inputs: dict[str, Any]
    load: Callable[[], Adapter | DenseDelta | None]


def variants(run: Run) -> dict[str, Variant]:
    """Returns the variants of a run by name; an individual adapter is `individual-<language>`.

    `tuned` is missing: which recipe it is, `tune` finds out.
    """
    found = {BASE: Variant({}, lambda: None)}
    if run.adapter_directory(COMBINED).exists():
        found[COMBINED] = adapter_variant(run, COMBINED)
    for language in run.languages:
        found[f"{INDIVIDUAL}-{language}"] = adapter_variant(run, language)
    for recipe in map(parse, run.config.merge.recipes):
        found[recipe.name] = merge_variant(run, recipe)
    return found


def adapter_variant(run: Run, name: str) -> Variant:
    """Returns a trained adapter as a variant."""
    return Variant({"adapter": identity(there(run, name))}, lambda: trained(run, name))


def merge_variant(run: Run, recipe: Recipe) -> Variant:
    """Returns a merge as a variant."""
    return Variant(merge_inputs(run, recipe), lambda: merged(run, recipe))


def evaluate(run: Run) -> None:
    """Predicts the test rows with every variant.

    Writes `predictions/<variant>/<language>.jsonl`: id, label, prediction and the log-likelihood
    of each label. Variants that are there already are skipped.
    """
    found = variants(run)
    evaluator = Evaluator(run)
    if run.config.merge.tune_lambda:
        found[TUNED] = merge_variant(run, tune(run, evaluator))
    predict(run, evaluator, found)
    keep_rows(run)
    if len(run.languages) > 1:
        route(run)


def predict(run: Run, evaluator: Evaluator, found: Mapping[str, Variant]) -> None:
    """Predicts the test rows with those variants that have not yet, and writes `predictions/`."""
    common = run_inputs(run, "test")
    inputs = {name: common | variant.inputs for name, variant in found.items()}
    missing = [n for n in found if not is_current(run.predictions_directory(n), inputs[n])]
    if len(missing) < len(found):
        logger.info("predictions there already, skipped: %d variants", len(found) - len(missing))
    if not missing:
        return
    total = len(missing) * evaluator.rows("test")
    with Progress(f"evaluate {len(missing)} variants", total, "row") as progress:
        for name in missing:
            with making(run.predictions_directory(name), inputs[name]) as directory:
                top = found[name].load()
                for language, scores in evaluator.predict(top, "test", progress.update):
                    rows = _predictions(run, language, scores)
                    write_jsonl(directory / f"{language}.jsonl", rows)


def keep_rows(run: Run) -> None:
    """Writes `test/<language>.jsonl`: id, text and label of the rows that were predicted."""
    inputs = {x: digest_rows(run.examples(x, "test")) for x in run.languages}
    if is_current(run.home / "test", inputs):
        return
    with making(run.home / "test", inputs) as directory:
        for language in run.languages:
            rows = (
                {"id": example.id, "text": example.text, "label": example.label}
                for example in run.examples(language, "test")
            )
            write_jsonl(directory / f"{language}.jsonl", rows)


def run_inputs(run: Run, split: str) -> dict[str, Any]:
    """Returns what all predictions of a split are made from."""
    rows = {language: digest_rows(run.examples(language, split)) for language in run.languages}
    return {"base": run.base_identity, "task": to_json(run.config)["task"], "rows": rows}


def _predictions(run: Run, language: str, scores: np.ndarray) -> Iterator[dict]:
    labels = run.task.labels
    for example, row in zip(run.examples(language, "test"), scores, strict=True):
        yield {
            "id": example.id,
            "label": example.label,
            "prediction": labels[int(row.argmax())],
            "log_likelihood": dict(zip(labels, map(float, row), strict=True)),
        }


def tune(run: Run, evaluator: Evaluator) -> Recipe:
    """Picks recipe and lambda by the mean macro F1 on validation; keeps all tried in `tuning.json`.

    Candidates are `merge.tune_recipes` with every lambda of `merge.tune_lambda`; of equal scores
    the first wins.
    """
    config = run.config.merge
    names, gains = list(config.tune_recipes), list(config.tune_lambda)
    candidates = [dataclasses.replace(parse(n), lam=gain) for n in names for gain in gains]
    inputs = {r.name: merge_inputs(run, r) for r in candidates} | run_inputs(run, "validation")
    path = run.home / "tuning.json"
    if path.exists() and (earlier := read_json(path))["inputs"] == digest(inputs):
        return parse(earlier["chosen"])
    tried = {}
    total = len(candidates) * evaluator.rows("validation")
    with Progress(f"try {len(candidates)} recipes on validation", total, "row") as progress:
        for recipe in candidates:
            found = []
            for language, scores in evaluator.predict(
                merged(run, recipe, keep=False), "validation", progress.update
            ):
                truth = [e.label for e in run.examples(language, "validation")]
                chosen = [run.task.labels[i] for i in scores.argmax(axis=1)]
                found.append(classification_scores(truth, chosen, run.task.labels)["macro_f1"])
            tried[recipe.name] = float(np.mean(found))
    best = max(tried, key=tried.__getitem__)
    write_json(path, {"inputs": digest(inputs), "chosen": best, "macro_f1_on_validation": tried})
    logger.info("best on validation: %s (macro F1 %.4f)", best, tried[best])
    return parse(best)


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
                x: read_jsonl(run.predictions_directory(f"{INDIVIDUAL}-{x}") / f"{language}.jsonl")
                for x in set(detected)
            }
            write_jsonl(
                directory / f"{language}.jsonl",
                (predicted[x][i] | {"routed_to": x} for i, x in enumerate(detected)),
            )
