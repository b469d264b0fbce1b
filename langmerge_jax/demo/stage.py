"""The first stage of a run that makes its own base, from the config's `demo` section."""

import dataclasses
import logging
import pathlib
from typing import Any

import numpy as np

from langmerge_jax.config import to_json
from langmerge_jax.data.examples import Example
from langmerge_jax.data.sources import INSTRUCT, Source
from langmerge_jax.demo.base import BaseSettings, build_base
from langmerge_jax.demo.config import sentiment_of_demo
from langmerge_jax.demo.corpus import CorpusSettings, read_unlabelled, write_corpus
from langmerge_jax.demo.grammar import GrammarSettings, LexiconSizes
from langmerge_jax.errors import InputError
from langmerge_jax.files import remove_directory
from langmerge_jax.lifecycle.run import Run, source_spec
from langmerge_jax.lifecycle.stages import digest_rows, identity, is_current, making
from langmerge_jax.tasks.labels import LabelTask
from langmerge_jax.tasks.make import make_task
from langmerge_jax.training.steps import CHECKPOINTS

logger = logging.getLogger(__name__)

CORPUS = "corpus"


@dataclasses.dataclass(frozen=True)
class _Lessons:
    """What a base is made of.

    Attributes:
      texts: to pretrain on, in this order.
      examples: {language: rows} to instruct it by.
      task: that asks these.
      inputs: what stands for all that.
    """

    texts: list[str]
    examples: dict[str, list[Example]]
    task: LabelTask
    inputs: dict[str, Any]


def prepare(run: Run) -> None:
    """Writes `base/` under the workdir, and before it `corpus/` if the config describes one.

    With a corpus the base is tuned for sentiment whatever the run's task, so that all tasks start
    from one base; where the config names another base none is made. Without a corpus the base reads
    the texts of the run's own training and instruct rows, never those of validation and test rows.

    Raises:
      InputError: if without a corpus the instruct rows have no share of the run's rows.
    """
    generated = bool(run.config.demo.get("corpus"))
    if generated:
        _write_corpus(run)
    base = run.workdir / "base"
    if run.path(run.config.base) != str(base):
        return
    lessons = _of_corpus(run) if generated else _of_own_rows(run)
    inputs = lessons.inputs | {"settings": to_json(run.config)["demo"]["base"]}
    folder = run.training_directory("base", inputs)
    if is_current(base, inputs):
        logger.info("base model there already, skipped: %s", base)
        _remove_checkpoints(folder)  # If it was killed right here.
        return
    with making(base, inputs) as directory:
        build_base(
            directory,
            texts=lessons.texts,
            examples=lessons.examples,
            task=lessons.task,
            settings=BaseSettings(**run.config.demo.base),
            mesh=run.mesh,
            folder=folder,
        )
    _remove_checkpoints(folder)


def _write_corpus(run: Run) -> None:
    """Writes the corpus unless it is there."""
    corpus, place = run.config.demo.corpus, run.workdir / CORPUS
    inputs = {"settings": to_json(run.config)["demo"]["corpus"]}
    if is_current(place, inputs):
        logger.info("corpus there already, skipped: %s", place)
        return
    settings = CorpusSettings(
        languages=tuple(corpus.languages),
        rows=dict(corpus.rows),
        unlabelled=corpus.unlabelled,
        verdict=corpus.verdict,
        lexicon=LexiconSizes(**corpus.lexicon),
        grammar=GrammarSettings(**corpus.grammar),
        unlabelled_grammar=GrammarSettings(**corpus.unlabelled_grammar),
        seed=corpus.seed,
        tasks={task: dict(rows) for task, rows in corpus.get("tasks", {}).items()},
    )
    with making(place, inputs) as directory:
        write_corpus(directory, settings)


def _of_corpus(run: Run) -> _Lessons:
    """The corpus's unlabelled texts, and its rows of sentiment to be instructed by."""
    corpus, place = run.config.demo.corpus, run.workdir / CORPUS
    languages = tuple(corpus.languages)
    sentiment = sentiment_of_demo(run.config)
    task = make_task(sentiment)
    spec = source_spec(sentiment.data, run.path, languages)
    source = Source(dataclasses.replace(spec, rows={INSTRUCT: 0}), task)
    return _Lessons(
        read_unlabelled(place, languages, corpus.seed),
        {x: source.draw(x, INSTRUCT) for x in languages},
        task,
        {"corpus": identity(place), "task": to_json(sentiment)["task"]},
    )


def _of_own_rows(run: Run) -> _Lessons:
    """The texts of the run's own rows, of which some are kept to be instructed by."""
    if INSTRUCT not in run.config.data.shares:
        raise InputError(
            f"data.shares has no {INSTRUCT!r}: a base that is trained on the run's own rows needs "
            "some that no adapter is trained or tested on; give it a share"
        )
    rows = {
        split: {x: run.examples(x, split) for x in run.languages} for split in ("train", INSTRUCT)
    }
    read = [row for of in rows.values() for some in of.values() for row in some]
    order = np.random.default_rng(run.config.demo.base.seed).permutation(len(read))
    digests = {
        split: digest_rows([row for some in of.values() for row in some])
        for split, of in rows.items()
    }
    return _Lessons(
        [read[i].text for i in order],
        rows[INSTRUCT],
        run.task,
        digests | {"texts": len(read), "task": run.asked},
    )


def _remove_checkpoints(folder: pathlib.Path) -> None:
    for checkpoints in folder.glob(f"*/{CHECKPOINTS}"):
        remove_directory(checkpoints)
