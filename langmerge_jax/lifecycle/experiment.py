"""Everything from data to tables, each stage skipping what is there."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from langmerge_jax.lifecycle.costs import write_costs
from langmerge_jax.lifecycle.evaluation import evaluate
from langmerge_jax.lifecycle.merging import merge_all
from langmerge_jax.lifecycle.outside import score_outside
from langmerge_jax.lifecycle.ranks import score_ranks
from langmerge_jax.lifecycle.run import Run
from langmerge_jax.lifecycle.scores import score, score_baselines
from langmerge_jax.lifecycle.similarity import compare_adapters
from langmerge_jax.lifecycle.training import train_adapters
from langmerge_jax.lifecycle.update import UpdatedRun, update
from langmerge_jax.lifecycle.variants import Variant
from langmerge_jax.reporting.report import write_report
from langmerge_jax.reporting.tables import (
    changes_table,
    costs_table,
    ranks_table,
    schedule_table,
    similarity_table,
    write_tables,
)


def experiment(run: Run, extra: Mapping[str, Variant] = MappingProxyType({})) -> str:
    """Trains, merges, evaluates, plays through the planned updates and writes the report.

    Stages hand over by files in the workdir, so an interrupted run is taken up where it stood.

    Args:
      extra: {name: variant} to evaluate beside the run's own.

    Returns:
      The tables to print.
    """
    train_adapters(run, combined=False)
    train_adapters(run, combined=True)
    merge_all(run)
    tables = [evaluate_and_report(run, extra=extra)]
    tables.append(similarity_table(run.home).text())
    if run.config.evaluate.ranks:
        score_ranks(run)
        tables.append(ranks_table(run.home).text())
    for change in planned(run):
        # A warm update is compared with the `combined` that its cold one retrained.
        update(run, change, combined=run.config.updates.combined and change.warm_start is None)
        tables.append(changes_table(change.home).text())
    if write_costs(run, alone=True):
        tables += [costs_table(run.home).text(), schedule_table(run.home).text()]
    write_report(run.home)
    return "\n".join(tables)


def planned(run: Run) -> Iterator[UpdatedRun]:
    """Yields the updates of `config.updates.plan`."""
    for entry in run.config.updates.plan:
        language, _, data = entry.partition("=")
        yield UpdatedRun(run, language, data or None)
        if run.config.updates.warm_start and language in run.languages:
            yield UpdatedRun(run, language, data or None, run.config.updates.warm_start)


def evaluate_and_report(
    run: Run, wanted: Sequence[str] = (), extra: Mapping[str, Variant] = MappingProxyType({})
) -> str:
    """Evaluates what the workdir holds; returns the tables to print.

    Args:
      wanted: rows of the score table; none for all.
      extra: {name: variant} beside the run's own.
    """
    score(run, evaluate(run, wanted, extra))
    if run.config.evaluate.baselines:
        score_baselines(run)
    if not wanted:
        compare_adapters(run)
        write_costs(run, alone=False)
    return write_tables(run.home)


def score_and_report(run: Run, path: str) -> str:
    """Scores outputs made elsewhere beside what the run has answered; returns the tables to print.

    Args:
      path: of the outputs, see `score_outside`.
    """
    score(run, score_outside(run, path))
    return write_tables(run.home)
