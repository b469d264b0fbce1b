"""The demo's first stage: its corpus and its base model, from the config's `demo` section."""

import dataclasses
import logging

from langmerge_jax.data.sources import load_split
from langmerge_jax.demo.base import BaseSettings, build_base
from langmerge_jax.demo.corpus import CorpusSettings, read_unlabelled, write_corpus
from langmerge_jax.demo.grammar import GrammarSettings, LexiconSizes
from langmerge_jax.files import finished_directory
from langmerge_jax.lifecycle.run import Run

logger = logging.getLogger(__name__)


def prepare(run: Run) -> None:
    """Writes `corpus/` and `base/` under the workdir unless they are there."""
    demo = run.config.demo
    corpus, base = run.workdir / "corpus", run.workdir / "base"
    if corpus.exists():
        logger.info("corpus there already, skipped: %s", corpus)
    else:
        settings = CorpusSettings(
            languages=tuple(demo.corpus.languages),
            rows=dict(demo.corpus.rows),
            unlabelled=demo.corpus.unlabelled,
            verdict=demo.corpus.verdict,
            lexicon=LexiconSizes(**demo.corpus.lexicon),
            grammar=GrammarSettings(**demo.corpus.grammar),
            unlabelled_grammar=GrammarSettings(**demo.corpus.unlabelled_grammar),
            seed=demo.corpus.seed,
        )
        with finished_directory(corpus) as directory:
            write_corpus(directory, settings)
    if base.exists():
        logger.info("base model there already, skipped: %s", base)
        return
    source = dataclasses.replace(run.source, rows={"instruct": 0})
    with finished_directory(base) as directory:
        build_base(
            directory,
            texts=read_unlabelled(corpus, tuple(demo.corpus.languages), demo.corpus.seed),
            examples={x: load_split(source, x, "instruct") for x in demo.corpus.languages},
            task=run.task,
            settings=BaseSettings(**demo.base),
            mesh=run.mesh,
        )
