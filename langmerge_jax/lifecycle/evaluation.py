"""The evaluation stage: every variant on every language, as predictions on disk."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator

import numpy as np

from langmerge_jax.adapters import Adapter
from langmerge_jax.evaluation.metrics import classification_scores
from langmerge_jax.evaluation.predict import ChoiceScorer
from langmerge_jax.files import finished_directory, write_json, write_jsonl
from langmerge_jax.lifecycle.merging import merged, trained
from langmerge_jax.lifecycle.run import COMBINED, Run
from langmerge_jax.merging import DenseDelta, Recipe, parse
from langmerge_jax.models.fold import fold
from langmerge_jax.models.stacking import spec_of, stack
from langmerge_jax.progress import Progress

logger = logging.getLogger(__name__)

BASE, INDIVIDUAL, TUNED = "base", "individual", "tuned"


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
        return sum(len(self._run.examples(x, split)) for x in self._run.config.languages)

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
        for language in self._run.config.languages:
            key = (language, split)
            if key not in self._prompts:
                encoded = task.encode(base.tokenizer, self._run.examples(*key))
                self._prompts[key] = [example.prompt for example in encoded]
            yield language, self._scorer(self._prompts[key], done=done, **weights)


def variants(run: Run) -> dict[str, Callable[[], Adapter | DenseDelta | None]]:
    """Returns how to get each variant of a run; an individual adapter is `individual-<language>`.

    `tuned` is missing: which recipe it is, `tune` finds out.
    """
    found: dict[str, Callable[[], Adapter | DenseDelta | None]] = {BASE: lambda: None}
    if run.adapter_directory(COMBINED).exists():
        found[COMBINED] = lambda: trained(run, COMBINED)
    for language in run.config.languages:
        found[f"{INDIVIDUAL}-{language}"] = lambda name=language: trained(run, name)
    for recipe in map(parse, run.config.merge.recipes):
        found[recipe.name] = lambda recipe=recipe: merged(run, recipe)
    return found


def evaluate(run: Run) -> None:
    """Predicts the test rows with every variant.

    Writes `predictions/<variant>/<language>.jsonl`: id, label, prediction and the log-likelihood
    of each label. Variants that are there already are skipped.
    """
    found = variants(run)
    evaluator = Evaluator(run)
    if run.config.merge.tune_lambda:
        tuned = tune(run, evaluator)
        found[TUNED] = lambda: merged(run, tuned)
    missing = [name for name in found if not run.predictions_directory(name).exists()]
    if len(missing) < len(found):
        logger.info("predictions there already, skipped: %d variants", len(found) - len(missing))
    if not missing:
        return
    total = len(missing) * evaluator.rows("test")
    with Progress(f"evaluate {len(missing)} variants", total, "row") as progress:
        for name in missing:
            with finished_directory(run.predictions_directory(name)) as directory:
                for language, scores in evaluator.predict(found[name](), "test", progress.update):
                    rows = _predictions(run, language, scores)
                    write_jsonl(directory / f"{language}.jsonl", rows)


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
    path = run.workdir / "tuning.json"
    if path.exists():
        return parse(json.loads(path.read_text(encoding="utf-8"))["chosen"])
    tried = {}
    candidates = [
        dataclasses.replace(parse(name), lam=lam)
        for name in run.config.merge.tune_recipes
        for lam in run.config.merge.tune_lambda
    ]
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
    write_json(path, {"chosen": best, "macro_f1_on_validation": tried})
    logger.info("best on validation: %s (macro F1 %.4f)", best, tried[best])
    return parse(best)
