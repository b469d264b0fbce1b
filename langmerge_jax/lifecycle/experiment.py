"""Everything from data to table, each stage skipping what is there."""

from langmerge_jax.lifecycle.evaluation import evaluate
from langmerge_jax.lifecycle.merging import merge_all
from langmerge_jax.lifecycle.run import Run
from langmerge_jax.lifecycle.scores import score, score_ngrams
from langmerge_jax.lifecycle.training import train_adapters
from langmerge_jax.reporting.tables import write_tables


def experiment(run: Run) -> str:
    """Trains, merges and evaluates; returns the tables to print.

    Stages hand over by files in the workdir, so an interrupted run is taken up where it stood.
    """
    train_adapters(run, combined=False)
    train_adapters(run, combined=True)
    merge_all(run)
    return evaluate_and_report(run)


def evaluate_and_report(run: Run) -> str:
    """Evaluates what the workdir holds; returns the tables to print."""
    evaluate(run)
    if run.config.evaluate.ngram_baseline:
        score_ngrams(run)
    score(run)
    return write_tables(run.workdir)
