"""Runs everything: data, base, adapters, merges, evaluation, table. Run again, it resumes.

  python -m langmerge_jax.experiment --config=configs/demo.py --workdir=runs/demo

trains the individual adapters and the combined one, merges by every recipe of the config, scores
all of them on every language, plays through the config's updates, prints the tables and writes
report.html. A config of several tasks does so for each, in a folder of its name, and merges and
trains across them.
"""

from langmerge_jax import cli

cli.define_flags()


def main() -> None:
    config, workdir = cli.config_and_workdir()
    # Imported here, so that --help and wrong flags answer at once.
    from langmerge_jax.lifecycle.experiment import experiment
    from langmerge_jax.lifecycle.multitask import multitask
    from langmerge_jax.lifecycle.run import Run

    run = Run(config, workdir)
    if config.demo:
        from langmerge_jax.demo.stage import prepare

        prepare(run)
    print(multitask(run) if config.tasks else experiment(run))
    print(f"results: {workdir}")
    for folder in [workdir / name for name in config.tasks] or [workdir]:
        print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    cli.run(
        main,
        too_much="lower evaluate.batch_size or evaluate.variants_at_once where it evaluates, raise "
        "train.accumulation where it trains, or spread the model over more devices (mesh.fsdp, "
        f"mesh.tensor); {cli.PLAN}",
    )
