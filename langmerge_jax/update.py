"""Gives one language more rows, or adds a language: trains its adapter alone and merges again.

  python -m langmerge_jax.update --config=configs/mine.py --language=en --data=data/en/new.jsonl
  python -m langmerge_jax.update --config=configs/mine.py --language=es

Needs a workdir whose adapters are trained and evaluated. Results lie under updates/<language>:
the new adapter, the new merge, predictions, and changes.json with the change of every language.
"""

from absl import flags

from langmerge_jax import cli
from langmerge_jax.errors import InputError

cli.define_flags()
_LANGUAGE = flags.DEFINE_string("language", None, "Language that changes or joins.")
_DATA = flags.DEFINE_string(
    "data",
    None,
    "New rows: a file, or another path as config.data.path takes it. By default they are those of "
    "config.data.path: all rows of a language that joins, of another as many as "
    "config.data.rows.further of those not trained on yet.",
)
_WARM_START = flags.DEFINE_float(
    "warm_start",
    None,
    "Train the live adapter further, on the new rows and this share of as many old ones, instead "
    "of a new adapter on all rows. The usual share is 0.2.",
    lower_bound=0.0,
)


def main() -> None:
    config, workdir = cli.config_and_workdir()
    if _LANGUAGE.value is None:
        raise InputError("--language is missing; name the one that changes or joins")
    # Imported here, so that --help and bad flags are answered at once.
    from langmerge_jax.lifecycle.costs import write_costs
    from langmerge_jax.lifecycle.run import Run
    from langmerge_jax.lifecycle.update import UpdatedRun, update
    from langmerge_jax.reporting.tables import changes_table, costs_table

    run = Run(config, workdir)
    change = UpdatedRun(run, _LANGUAGE.value, _DATA.value, _WARM_START.value)
    update(run, change, combined=config.updates.combined)
    print(changes_table(change.home).text())
    if write_costs(run, alone=False):
        print(costs_table(run.home).text())
    print(f"results: {change.home}")


if __name__ == "__main__":
    cli.run(
        main,
        too_much="lower evaluate.batch_size or evaluate.variants_at_once where it evaluates, raise "
        "train.accumulation where it trains, or spread the model over more devices (mesh.fsdp, "
        f"mesh.tensor); {cli.PLAN}",
    )
