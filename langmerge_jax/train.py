"""Trains one LoRA adapter a language, all in one program over one frozen base.

  python -m langmerge_jax.train --config=configs/sentiment_en.py

writes runs/sentiment_en/adapters/en in PEFT format. With --config.combined=True one adapter,
`combined`, is trained on the rows of all languages together. Adapters that are there already are
skipped.

Several processes, of one machine or many, train together over one shared file system: each runs
this command, with --distributed.
"""

import logging

from absl import flags

from langmerge_jax import cli

cli.define_flags()
flags.DEFINE_string(
    "distributed",
    "",
    "Trains as one of several processes. auto: jax finds the others (Cloud TPU, Slurm, Kubernetes, "
    "Open MPI). Or by hand: <host>:<port>,<number of processes>,<number of this one, from 0>, with "
    "host and port of process 0. Data, base and workdir must be the same files for all.",
)


def main() -> None:
    config, workdir = cli.config_and_workdir()
    # Imported here, so that --help and wrong flags answer at once.
    from langmerge_jax.lifecycle.run import Run
    from langmerge_jax.lifecycle.training import train_adapters
    from langmerge_jax.parallel.processes import join, leads

    join(flags.FLAGS.distributed)
    run = Run(config, workdir)
    if not leads():  # The first speaks for all; what goes wrong, each says itself.
        logging.getLogger().setLevel(logging.WARNING)
    train_adapters(run, combined=config.combined)
    if leads():
        print(f"adapters: {run.workdir / 'adapters'}")


if __name__ == "__main__":
    cli.run(main)
