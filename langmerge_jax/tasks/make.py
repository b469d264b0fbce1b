"""From a config to its task."""

from collections.abc import Callable

import ml_collections

from langmerge_jax.errors import InputError
from langmerge_jax.tasks.labels import Reasoning, Sentiment
from langmerge_jax.tasks.summarization import Summarization
from langmerge_jax.tasks.task import Task
from langmerge_jax.tasks.themes import Themes


def make_task(config: ml_collections.ConfigDict) -> Task:
    """Returns the task of a config.

    Raises:
      InputError: if there is none of that name, or its settings do not fit.
    """
    task = config.task
    if task.name not in _TASKS:
        raise InputError(f"task.name={task.name!r}; known: {', '.join(_TASKS)}")
    common = {
        "template": task.template,
        "templates": task.templates.to_dict(),
        "max_length": task.max_length,
        "max_new_tokens": task.max_new_tokens,
    }
    return _TASKS[task.name](config, common)


def _labels(kind: type) -> Callable:
    def make(config: ml_collections.ConfigDict, common: dict) -> Task:
        return kind(
            **common,
            labels=tuple(config.task.labels),
            answers=config.task.answers.to_dict(),
            names=config.data.labels.to_dict(),
        )

    return make


def _summarization(config: ml_collections.ConfigDict, common: dict) -> Task:
    settings = config.evaluate.bertscore
    return Summarization(
        **common,
        encoder=settings.model,
        layer=settings.layer or None,
        encoder_batch=settings.batch_size,
    )


def _themes(config: ml_collections.ConfigDict, common: dict) -> Task:
    return Themes(**common, fuzzy=config.evaluate.fuzzy)


_TASKS = {
    "sentiment": _labels(Sentiment),
    "reasoning": _labels(Reasoning),
    "summarization": _summarization,
    "themes": _themes,
}
