"""The demo's first stage: its corpus and its base model, from the config's `demo` section."""

import dataclasses
import logging
import pathlib

from langmerge_jax.config import to_json
from langmerge_jax.data.sources import Source
from langmerge_jax.demo.base import BaseSettings, build_base
from langmerge_jax.demo.config import sentiment_of_demo
from langmerge_jax.demo.corpus import CorpusSettings, read_unlabelled, write_corpus
from langmerge_jax.demo.grammar import GrammarSettings, LexiconSizes
from langmerge_jax.files import remove_directory
from langmerge_jax.lifecycle.run import Run, source_spec
from langmerge_jax.lifecycle.stages import identity, is_current, making
from langmerge_jax.tasks.make import make_task
from langmerge_jax.training.steps import CHECKPOINTS

logger = logging.getLogger(__name__)


def prepare(run: Run) -> None:
    """Writes `corpus/` and `base/` under the workdir unless they are there.

    The base is tuned for sentiment whatever the run's task, so that all tasks start from one base;
    where the config names another base none is made.
    """
    demo, sentiment = run.config.demo, sentiment_of_demo(run.config)
    corpus, base = run.workdir / "corpus", run.workdir / "base"
    settings = to_json(run.config)
    inputs = {"settings": settings["demo"]["corpus"]}
    if is_current(corpus, inputs):
        logger.info("corpus there already, skipped: %s", corpus)
    else:
        corpus_settings = CorpusSettings(
            languages=tuple(demo.corpus.languages),
            rows=dict(demo.corpus.rows),
            unlabelled=demo.corpus.unlabelled,
            verdict=demo.corpus.verdict,
            lexicon=LexiconSizes(**demo.corpus.lexicon),
            grammar=GrammarSettings(**demo.corpus.grammar),
            unlabelled_grammar=GrammarSettings(**demo.corpus.unlabelled_grammar),
            seed=demo.corpus.seed,
            tasks={task: dict(rows) for task, rows in demo.corpus.get("tasks", {}).items()},
        )
        with making(corpus, inputs) as directory:
            write_corpus(directory, corpus_settings)
    if run.path(run.config.base) != str(base):
        return
    inputs = {
        "corpus": identity(corpus),
        "settings": settings["demo"]["base"],
        "task": to_json(sentiment)["task"],
    }
    folder = run.training_directory("base", inputs)
    if is_current(base, inputs):
        logger.info("base model there already, skipped: %s", base)
        _remove_checkpoints(folder)  # If it was killed right here.
        return
    task, languages = make_task(sentiment), demo.corpus.languages
    spec = source_spec(sentiment.data, run.path, languages)
    source = Source(dataclasses.replace(spec, rows={"instruct": 0}), task)
    with making(base, inputs) as directory:
        build_base(
            directory,
            texts=read_unlabelled(corpus, tuple(languages), demo.corpus.seed),
            examples={x: source.draw(x, "instruct") for x in languages},
            task=task,
            settings=BaseSettings(**demo.base),
            mesh=run.mesh,
            folder=folder,
        )
    _remove_checkpoints(folder)


def _remove_checkpoints(folder: pathlib.Path) -> None:
    for checkpoints in folder.glob(f"*/{CHECKPOINTS}"):
        remove_directory(checkpoints)
