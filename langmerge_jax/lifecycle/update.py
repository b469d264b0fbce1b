"""One language gets more rows, or joins: its adapter alone is trained, and all merged again."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from langmerge_jax.data.examples import Example
from langmerge_jax.data.sources import HOSTED, Source
from langmerge_jax.errors import InputError
from langmerge_jax.evaluation.intervals import interval
from langmerge_jax.files import read_json, write_json
from langmerge_jax.lifecycle.merging import of_languages
from langmerge_jax.lifecycle.prediction import Answerer, predict
from langmerge_jax.lifecycle.run import COMBINED, Run, RunWithin
from langmerge_jax.lifecycle.scores import ALL, Scored, Scorer, defined
from langmerge_jax.lifecycle.training import (
    Target,
    train_adapters,
    train_targets,
    validation_rows,
)
from langmerge_jax.lifecycle.variants import (
    INDIVIDUAL,
    Variant,
    adapter_variant,
    individual,
    merge_variant,
)
from langmerge_jax.merging import Recipe, parse

BEFORE, CHANGES = "before-", "changes.json"
# The split of new rows, which is none of those that a run has.
NEW = "new"


class UpdatedRun(RunWithin):
    """A run in which one language has more rows, or has joined; all else is the run's own.

    Its results lie in a home of their own, `updates/<name>`; the adapters of the other languages
    are the run's.

    Args:
      run: as it was.
      language: that changes.
      data: of the new rows, as in `config.data.path`; None takes the config's own data: for a
        language that joins its rows, for another as many as `config.data.rows.further` of its
        training rows that were not drawn before.
      warm_start: share of old rows, in proportion to the new ones, that are trained on again when
        the live adapter is trained further; None trains a new adapter on old and new rows.

    Raises:
      InputError: if the language has no new rows, no rows of its own to be tested on, or nothing
        to start from.
    """

    def __init__(self, run: Run, language: str, data: str | None, warm_start: float | None = None):
        super().__init__(run)
        self.language, self.warm_start = language, warm_start
        self.joins = language not in run.languages
        if self.joins and data and "{split}" not in data and not data.startswith(HOSTED):
            raise InputError(
                f"--data={data} for {language}, which joins: its rows of train, validation and "
                "test lie in files of their own; write {split} where they differ"
            )
        if warm_start is not None and self.joins:
            raise InputError(f"--language={language} joins, there is no adapter to start from")
        self.languages = (*run.languages, language) if self.joins else run.languages
        self.name = language if warm_start is None else f"{language}-warm"
        self.home = run.workdir / "updates" / self.name
        self._data = None if data is None else run.path(data)

    @property
    def task(self):
        return self._run.task

    def adapter_directory(self, name: str) -> pathlib.Path:
        """Where an adapter lies: in the update if it is another one there, else in the run."""
        if name == COMBINED:
            # The same rows whether the language's own adapter starts warm or not.
            return self.workdir / "updates" / self.language / "adapters" / COMBINED
        if name == self.language:
            return self.home / "adapters" / name
        return self._run.adapter_directory(name)

    def training_directory(self, name: str, inputs: Mapping[str, Any]) -> pathlib.Path:
        """Where one training of this update lies, beside those of the run."""
        return self._run.training_directory(f"update-{self.name}-{name}", inputs)

    def examples(self, language: str, split: str) -> list[Example]:
        """Returns a language's rows; the training rows of the updated one with the new ones."""
        if language != self.language:
            return self._run.examples(language, split)
        if self.joins:
            return self._brought.draw(language, split)
        rows = self._run.examples(language, split)
        return [*rows, *self.new_rows()] if split == "train" else rows

    @functools.cached_property
    def _brought(self) -> Source:
        """The source of the new rows."""
        spec = self.source_spec()
        if self._data is not None:
            spec = dataclasses.replace(spec, path=self._data)
        if not self.joins:
            # All of them: how many the first training took says nothing of those that came since.
            called = {NEW: spec.splits.get("train", "train")}
            spec = dataclasses.replace(spec, rows={NEW: 0}, splits={**spec.splits, **called})
        return Source(spec, self.task)

    @functools.cache  # noqa: B019 (an update lives as long as the process)
    def new_rows(self) -> list[Example]:
        """Returns the rows that the update brings: none that the run has in any split."""
        if self.joins:
            return self._brought.draw(self.language, "train")
        if self._data is None:
            return self._run.source.further(self.language, self.config.data.rows.get("further", 0))
        rows = self._brought.draw(self.language, NEW)
        if not (found := self._run.source.without(rows, self.language)):
            raise InputError(f"--data={self._data}: every row is there already, none is new")
        return found

    def training_rows(self) -> list[Example]:
        """Returns what the language's adapter is trained on in this update."""
        if self.warm_start is None:
            return self.examples(self.language, "train")
        new, old = self.new_rows(), self._run.examples(self.language, "train")
        count = min(len(old), round(self.warm_start * len(new)))
        rng = np.random.default_rng([self.config.train.seed, *self.language.encode()])
        return [*new, *(old[i] for i in sorted(rng.permutation(len(old))[:count]))]


def update(run: Run, change: UpdatedRun, *, combined: bool) -> list[dict[str, Any]]:
    """Trains one language's adapter, merges again, and scores before against after.

    Writes `updates/<name>/changes.json`: {language, warm_start, rows}, with a row {variant,
    language, metric, before, after, difference, low, high, n} for the change of every language, on
    the same test rows.

    Args:
      run: as it was, its adapters trained.
      change: what changes.
      combined: also retrain `combined` on all rows, old and new, to compare with.

    Returns:
      the rows.

    Raises:
      InputError: if the run lacks an adapter, or nothing says which recipe to merge by.
    """
    recipe = live_recipe(run)
    # Before anything is trained: what is compared with must be there, and of today's rows.
    before = {recipe.name: merge_variant(run, of_languages(run, recipe))}
    if not change.joins:
        before[individual(change.language)] = adapter_variant(run, change.language)
    if combined:
        before[COMBINED] = adapter_variant(run, COMBINED)
    predict(run, Answerer(run), before)
    start = run.adapter_directory(change.language) if change.warm_start is not None else None
    target = Target(
        change.adapter_directory(change.language),
        change.training_rows(),
        validation_rows(change, [change.language]),
        start,
    )
    train_targets(change, {change.language: target})
    if combined:
        train_adapters(change, combined=True)
    found: dict[str, Variant] = {
        individual(change.language): adapter_variant(change, change.language),
        recipe.name: merge_variant(change, of_languages(change, recipe)),
    }
    if change.joins:
        # How the run did on a language it did not have.
        found[BEFORE + recipe.name] = merge_variant(run, of_languages(run, recipe))
    if combined:
        found[COMBINED] = adapter_variant(change, COMBINED)
        if change.joins:
            found[BEFORE + COMBINED] = adapter_variant(run, COMBINED)
    predict(change, Answerer(change), found)
    rows = _changes(run, change, [recipe.name, *([COMBINED] if combined else [])])
    write_json(
        change.home / CHANGES,
        {"language": change.language, "warm_start": change.warm_start, "rows": rows},
    )
    return rows


def live_recipe(run: Run) -> Recipe:
    """Returns the recipe that an update merges by: `config.updates.recipe`, or the tuned one.

    Raises:
      InputError: if there is neither.
    """
    if run.config.updates.recipe:
        return parse(run.config.updates.recipe)
    path = run.home / "tuning.json"
    if not path.exists():
        raise InputError(
            "which recipe to merge by is not said: set config.updates.recipe, such as "
            "ties_knots@0.5, or let the evaluate door choose one by config.merge.tune_lambda"
        )
    return parse(read_json(path)["chosen"])


def _changes(run: Run, change: UpdatedRun, names: list[str]) -> list[dict[str, Any]]:
    """Compares before and after: each language of the run, their mean, and one that joins."""
    rows = []
    for name in names:
        old = Scorer(run).read(dict.fromkeys(run.languages, name))
        new = Scorer(change).read(dict.fromkeys(run.languages, name))
        rows += compared(name, old, new)
    own = {change.language: individual(change.language)}
    if change.joins:
        for name in names:
            old = Scorer(change).read({change.language: BEFORE + name})
            new = Scorer(change).read({change.language: name})
            rows += compared(name, old, new, mean=False)
    else:
        rows += compared(INDIVIDUAL, Scorer(run).read(own), Scorer(change).read(own), mean=False)
    return rows


def compared(
    name: str, old: Mapping[str, Scored], new: Mapping[str, Scored], *, mean: bool = True
) -> list[dict[str, Any]]:
    """Returns rows of the change of one variant in the metric that decides, paired by test row.

    Args:
      name: of the variant.
      old, new: {language, and `all`: Scored}, from the same draws.
      mean: with the row of the mean over languages.
    """
    rows = []
    for language, before in old.items():
        if language == ALL and not mean:
            continue
        after = new[language]
        metric = next(iter(after.metrics))
        (was, draws_was), (is_now, draws_now) = (x.metrics[metric] for x in (before, after))
        low, high = interval(draws_now - draws_was)
        rows.append(
            {
                "variant": name,
                "language": language,
                "metric": metric,
                "before": defined(was),
                "after": defined(is_now),
                "difference": defined(is_now - was),
                "low": defined(low),
                "high": defined(high),
                "n": after.n,
            }
        )
    return rows
