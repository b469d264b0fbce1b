"""Trains one LoRA adapter a language, all in one program over one frozen base.

  python -m langmerge_jax.train --config=configs/sentiment_en.py

writes runs/sentiment_en/adapters/en in PEFT format. With --config.combined=True one adapter,
`combined`, is trained on the rows of all languages together. Adapters that are there already are
skipped. Beside the adapters, training/<name>/ keeps what the training was like: steps.jsonl, its
sum ledger.json, and tensorboard/ for `tensorboard --logdir`. --languages=en trains that one of the
config's languages alone; other processes may train others in the same workdir.

Several processes, of one machine or many, train together over one shared file system: each runs
this command, with --distributed.
"""

import logging

from absl import flags

from langmerge_jax import cli, watch

cli.define_flags()
flags.DEFINE_string(
    "distributed",
    "",
    "Trains as one of several processes. auto: jax finds the others (Cloud TPU, Slurm, Kubernetes, "
    "Open MPI). Or by hand: <host>:<port>,<number of processes>,<number of this one, from 0>, with "
    "host and port of process 0. Data, base and workdir must be the same files for all.",
)
_PEER_TIMEOUT = flags.DEFINE_integer(
    "peer_timeout",
    100,
    "With --distributed: a process that gives no sign of life for so many seconds counts as gone, "
    "and the others end with status 143.",
    lower_bound=5,
)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps",
    None,
    "Steps of each training that jax's profiler records into training/<name>/profile, FIRST:END; "
    "10:15 are the steps 10 to 14, counted from 0. The first steps of each length are compiled.",
)

_LANGUAGES = flags.DEFINE_list(
    "languages", [], "Languages of the config whose adapters are trained; all by default."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Show prompts, lengths and labels of the training rows, and stop."
)


def main() -> None:
    if flags.FLAGS.distributed:
        watch.watched()
    config, workdir = cli.config_and_workdir()
    profile = cli.span("profile_steps", _PROFILE_STEPS.value)
    # Imported here, so that --help and wrong flags answer at once.
    from langmerge_jax.lifecycle.preview import preview
    from langmerge_jax.lifecycle.run import Run
    from langmerge_jax.lifecycle.training import train_adapters
    from langmerge_jax.parallel.processes import join, leads

    join(flags.FLAGS.distributed, _PEER_TIMEOUT.value)
    run = Run(config, workdir, profile=profile, claim=not _DRY_RUN.value)
    if _DRY_RUN.value:
        print(preview(run, "train"))
        return
    if not leads():  # The first speaks for all; what goes wrong, each says itself.
        logging.getLogger().setLevel(logging.WARNING)
    train_adapters(run, combined=config.combined, only=_LANGUAGES.value)
    if leads():
        print(f"adapters: {run.workdir / 'adapters'}")


if __name__ == "__main__":
    cli.run(
        main,
        too_much="take a higher train.accumulation, a shorter task.max_length, or spread the model "
        f"over more devices (mesh.fsdp, mesh.tensor); {cli.PLAN}",
    )
