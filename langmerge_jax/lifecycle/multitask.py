"""Several tasks in one experiment: every adapter of every task merged into one."""

import copy
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import ml_collections

from langmerge_jax.config import claim_workdir
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.data.examples import Example
from langmerge_jax.errors import InputError
from langmerge_jax.lifecycle.experiment import experiment
from langmerge_jax.lifecycle.merging import MergeSpec, merge_all, there
from langmerge_jax.lifecycle.run import COMBINED, Run, RunWithin
from langmerge_jax.lifecycle.training import (
    Target,
    train_adapters,
    train_targets,
    validation_rows,
)
from langmerge_jax.lifecycle.variants import Variant, adapter_variant, merge_variant
from langmerge_jax.merging import parse

logger = logging.getLogger(__name__)

# Rows of each task's score table beside its own.
ALL_AT_ONCE, BY_TASK, COMBINED_TASKS = "all_tasks", "by_task", "combined_tasks"


class TaskRun(RunWithin):
    """One task of several; its results lie in the folder of its name.

    Args:
      whole: the run of all.
      name: of the task.
    """

    def __init__(self, whole: Run, name: str):
        super().__init__(whole)
        self.name = name
        self.workdir = self.home = whole.workdir / name
        self.config = _of_task(whole.config, name)
        claim_workdir(self.workdir, self.config)

    def examples(self, language: str, split: str) -> list[Example]:
        """Returns one language's rows of a split, which bear the task's name."""
        rows = super().examples(language, split)
        return [dataclasses.replace(row, task=self.name) for row in rows]


class Together(RunWithin):
    """All tasks as one: what is trained on all of their rows.

    Args:
      whole: the run of all.
      runs: one a task.
    """

    def __init__(self, whole: Run, runs: Sequence[TaskRun]):
        super().__init__(whole)
        self._runs = {run.name: run for run in runs}

    @property
    def asked(self) -> dict[str, Any]:
        return {name: run.asked for name, run in self._runs.items()}

    def encode(self, rows: Sequence[Example]) -> list[Encoded]:
        """Returns rows as tokens to train on, each as its task asks it."""
        found = {
            name: iter(run.encode([row for row in rows if row.task == name]))
            for name, run in self._runs.items()
        }
        return [next(found[row.task]) for row in rows]


def multitask(whole: Run) -> str:
    """Runs the experiment of each task, and with all of them together.

    Each task has its tables and report in the folder of its name. Beside its own rows stand
    `combined_tasks`, one adapter trained on all rows of all tasks; `all_tasks/<recipe>`, every
    adapter of every task merged at once; and `by_task/<recipe>`, the languages of each task merged
    first and the results after, for recipes that give adapters.

    Returns:
      The tables to print.

    Raises:
      InputError: if there are not several tasks, or one has the name of what else lies there.
    """
    names = list(whole.config.tasks)
    if len(names) < 2:
        raise InputError(f"tasks={names}: name several, or none for the config's own task")
    if taken := {*names} & {"adapters", "merged", "training", "corpus", "base"}:
        raise InputError(f"tasks.{min(taken)}: is the name of another folder; choose another")
    if whole.config.updates.plan:
        raise InputError("updates.plan: updates belong to an experiment of one task")
    runs = [TaskRun(whole, name) for name in names]
    for run in runs:
        train_adapters(run, combined=False)
        merge_all(run)
    _train_combined(whole, runs)
    extra = _variants(whole, runs)
    return "\n".join(f"=== {run.name}\n{experiment(run, extra)}" for run in runs)


def _train_combined(whole: Run, runs: Sequence[TaskRun]) -> None:
    """Trains one adapter on all rows of all tasks."""
    target = Target(
        whole.adapter_directory(COMBINED),
        [row for run in runs for x in run.languages for row in run.examples(x, "train")],
        [row for run in runs for row in validation_rows(run, run.languages)],
    )
    train_targets(Together(whole, runs), {COMBINED: target})


def _variants(whole: Run, runs: Sequence[TaskRun]) -> dict[str, Variant]:
    """What is made of all tasks, to be asked in each."""
    found = {COMBINED_TASKS: adapter_variant(whole, COMBINED)}
    apart = {f"{run.name}-{x}": there(run, x) for run in runs for x in run.languages}
    by_language = whole.config.merge.weights.to_dict()
    weights = {}
    if by_language:
        weights = {f"{r.name}-{x}": by_language.get(x, 1.0) for r in runs for x in r.languages}
    for recipe in map(parse, whole.config.merge.recipes):
        name = f"{ALL_AT_ONCE}/{recipe.name}"
        found[name] = merge_variant(whole, MergeSpec(name, recipe, apart, weights))
        if recipe.full_rank:
            logger.info("not merged task by task: %s gives no adapter to merge again", recipe.name)
            continue
        name = f"{BY_TASK}/{recipe.name}"
        merges = {run.name: run.merged_directory(recipe.name) for run in runs}
        found[name] = merge_variant(whole, MergeSpec(name, recipe, merges, {}))
    return found


def _of_task(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """The config of one of several tasks, seen from the folder of its name."""
    found = ml_collections.ConfigDict(copy.deepcopy(config.to_dict()))
    found.task, found.data = found.tasks[name].task, found.tasks[name].data
    found.tasks = ml_collections.ConfigDict()
    found.base = found.base.replace("{workdir}", "{workdir}/..")
    found.data.path = found.data.path.replace("{workdir}", "{workdir}/..")
    return found.lock()
