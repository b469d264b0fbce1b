"""Trains the adapters of a config apart, each where there is room for it, and merges them.

  python -m launch.fan_out --config=configs/sentiment_all.py --by=program
  python -m launch.fan_out --config=configs/sentiment_all.py --by=process --at_once=2
  python -m launch.fan_out --config=configs/sentiment_all.py --by=slurm --sbatch='--partition=gpu'
  python -m launch.fan_out --config=configs/sentiment_all.py --by=tpu \\
      --workdir=/mnt/share/runs/sentiment_all \\
      --tpu='--zone=us-west4-a --accelerator=v5litepod-8 --share=10.0.0.2:/vol --spot'

trains all languages in one program here, or each in a process, a Slurm job or a TPU slice of its
own; waits for all of them, and merges by the config's recipes when all are in. All work in one
workdir, which must be the same files for all. What each says lies in <workdir>/logs. Run again, it
takes up what is missing. Status: 0 done, 1 a language failed, 2 bad input, 143 ended or preempted,
and the same command goes on. docs/fan_out.md tells more.
"""

import json
import logging
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import flags

from langmerge_jax import cli
from langmerge_jax.errors import InputError
from langmerge_jax.files import read_json
from langmerge_jax.lifecycle.measured import write_measured
from langmerge_jax.watch import PREEMPTED
from launch import slices
from launch.jobs import Job, last_error, run_jobs, slurm_job

cli.define_flags()
_LANGUAGES = flags.DEFINE_list("languages", [], "Of the config's; all by default.")
_BY = flags.DEFINE_enum(
    "by",
    "program",
    ["program", "process", "slurm", "tpu"],
    "What trains: one program for all, or for each language a process of this machine, a job of "
    "launch/slurm.sbatch, or a slice of launch.tpu_pod.",
)
_AT_ONCE = flags.DEFINE_integer(
    "at_once", 0, "So many languages at a time; 0 for all.", lower_bound=0
)
_RECIPES = flags.DEFINE_list("recipes", [], "To merge by, such as ties_knots@0.5; the config's.")
_SBATCH = flags.DEFINE_string("sbatch", "", "Options of sbatch, with --by=slurm.")
_TPU = flags.DEFINE_string("tpu", "", "Options of launch.tpu_pod, with --by=tpu.")
_NAME = flags.DEFINE_string(
    "name", None, "What jobs and slices are called, before -<language>; the workdir's by default."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands, and run none.")
_EVERY = flags.DEFINE_float("every", 10.0, "Seconds between two lines on a language that trains.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
_ALL = "all"

logger = logging.getLogger(__name__)


def main() -> None:
    config, workdir = cli.config_and_workdir()
    wanted = _wanted(config)
    missing = [x for x in wanted if not _adapter(workdir, x).exists()]
    if there := [x for x in wanted if x not in missing]:
        logger.info("adapters there already, taken as they are: %s", ", ".join(there))
    jobs = _jobs(missing, workdir)
    if _BY.value == "tpu":
        slices.check(workdir, _TPU.value, [x.command for x in jobs], dry_run=_DRY_RUN.value)
        # The machines write into directories that are made here, as users of other numbers.
        os.umask(0)
    if _DRY_RUN.value:
        for command in [*(job.command for job in jobs), _merging(workdir)]:
            print(shlex.join(command))
        return
    at_once = min(_AT_ONCE.value or len(missing), len(jobs)) if jobs else 0
    cancel = _cancel_slurm if _BY.value == "slurm" else lambda _: None
    shown = _Shown(jobs, workdir)
    asked = run_jobs(
        jobs,
        at_once,
        show=shown,
        # At which launch.tpu_pod says what still runs.
        passed_on=signal.SIGINT if _BY.value == "tpu" else signal.SIGTERM,
        cancel=cancel,
        shares_cores=_BY.value == "process",
    )
    for job in jobs:
        if _BY.value == "tpu" and job.began and (costs := slices.left_running(job.log)):
            logger.info("%s", costs)
    left = [x for x in wanted if not _adapter(workdir, x).exists()]
    if left:
        _end(jobs, left, asked, workdir)
    if jobs:
        _note_measured(config, workdir, jobs, there)
    absent = [x for x in config.languages if not _adapter(workdir, x).exists()]
    if absent:
        print(f"adapters: {workdir / 'adapters'}; not merged without {', '.join(absent)}")
        return
    status = subprocess.run(_merging(workdir), check=False).returncode
    if status:  # The door has said why.
        sys.exit(status if status > 0 else 128 - status)
    print(f"results: {workdir}")


def _wanted(config) -> list[str]:
    """The languages to train, of those that the config has."""
    for language in _LANGUAGES.value:
        if language not in config.languages:
            known = ", ".join(config.languages)
            raise InputError(f"--languages={language}: the languages of this run are {known}")
    if config.combined:
        raise InputError("combined=True: is one training; start the train door")
    for name, value, by in (("sbatch", _SBATCH.value, "slurm"), ("tpu", _TPU.value, "tpu")):
        if value and _BY.value != by:
            raise InputError(f"--{name} is for --by={by}, not --by={_BY.value}")
    if _BY.value == "program" and _AT_ONCE.value:
        raise InputError("--at_once is of jobs; one program takes config.adapters_at_once")
    return [x for x in config.languages if x in _LANGUAGES.value or not _LANGUAGES.value]


def _adapter(workdir: pathlib.Path, language: str) -> pathlib.Path:
    return workdir / "adapters" / language


def _config_flags(argv: Sequence[str]) -> list[str]:
    """Returns the flags among these that say what the config is."""
    found, rest = [], list(argv)
    while rest:
        flag = rest.pop(0)
        if re.match(r"--?(no)?config(\.|=|$)", flag):
            found.append(flag)
            if "=" not in flag and rest and not rest[0].startswith("-"):
                found.append(rest.pop(0))
    return found


def _jobs(missing: Sequence[str], workdir: pathlib.Path) -> list[Job]:
    """What trains these languages."""
    name = _NAME.value or workdir.resolve().name

    def train(python: str, *languages: str) -> list[str]:
        command = [python, "-m", "langmerge_jax.train", *_config_flags(sys.argv[1:])]
        return [*command, f"--workdir={workdir}", f"--languages={','.join(languages)}"]

    def command(language: str) -> list[str]:
        if _BY.value == "process":
            return train(sys.executable, language)
        # Python is another one there.
        given = [*train("python", language), "--distributed=auto"]
        called = f"{name}-{language}"
        if _BY.value == "slurm":
            said = [f"--job-name={called}", f"--output={workdir / 'logs' / called}-%j.log"]
            options = ["--wait", *said, *shlex.split(_SBATCH.value)]
            return ["sbatch", *options, str(ROOT / "launch" / "slurm.sbatch"), *given]
        called = slices.slice_name(name, language)
        pod = [sys.executable, "-m", "launch.tpu_pod", "run", f"--name={called}"]
        return [*pod, *shlex.split(_TPU.value), "--", *given]

    def log(of: str) -> pathlib.Path:
        return workdir / "logs" / f"fan_out-{of}.log"

    if _BY.value == "program":
        return [Job(_ALL, train(sys.executable, *missing), log(_ALL))] if missing else []
    return [Job(x, command(x), log(x)) for x in missing]


def _cancel_slurm(job: Job) -> None:
    # sbatch would end, and its job go on.
    if number := slurm_job(job.log):
        subprocess.run(["scancel", number], check=False)


class _Shown:
    """Says a line of each job that has changed, and now and then how far its training is.

    Args:
      jobs: to speak of.
      workdir: where they train.
    """

    def __init__(self, jobs: Sequence[Job], workdir: pathlib.Path):
        self._jobs, self._workdir = jobs, workdir
        self._said: dict[str, str] = {}
        self._next = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        due, width = now >= self._next, max(len(job.name) for job in self._jobs)
        if due:
            self._next = now + _EVERY.value
        for job in self._jobs:
            line = job.state
            if line == "running" and due:
                line += _progress(self._workdir, job)
            elif line == "running" and self._said.get(job.name, "").startswith("running"):
                continue
            elif job.status is not None:
                line += f" in {job.ended - job.began:.0f} s"
            if self._said.get(job.name) != line:
                self._said[job.name] = line
                logger.info("%-*s  %s", width, job.name, line)


def _progress(workdir: pathlib.Path, job: Job) -> str:
    """What the step log of a job says: the last step and its loss."""
    logs = []
    for path in workdir.glob("training/*/job.json"):
        steps = path.with_name("steps.jsonl")
        if (job.name in read_json(path) or job.name == _ALL) and steps.exists():
            logs.append(steps)
    newest = max(logs, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None or newest.stat().st_mtime < job.began:
        return ""
    with newest.open("rb") as file:
        file.seek(max(0, newest.stat().st_size - (1 << 16)))
        lines = file.read().decode(errors="replace").split("\n")[1:-1]
    for line in reversed(lines):
        if (event := json.loads(line))["event"] == "step":
            losses = ", ".join(f"{name} {loss:.3g}" for name, loss in event["loss"].items())
            return f", step {event['step'] + 1}, loss {losses}"
    return ""


def _end(jobs: Sequence[Job], left: Sequence[str], asked: bool, workdir: pathlib.Path) -> None:
    """Ends with a line that names what failed, or what else is missing."""
    # One that ended well and left nothing failed too.
    failed = [x for x in jobs if not x.resumable and (x.name in left or x.name == _ALL)]
    again = "run again, it takes up what is missing"
    if _BY.value == "tpu":
        again += f"; what lives and costs: {slices.status_command(_TPU.value)}"
    if not failed:
        how = "ended by a signal" if asked else "preempted"
        print(f"error: {how}; missing: {', '.join(left)}; {again}", file=sys.stderr)
        sys.exit(PREEMPTED)
    said = []
    for job in failed:
        log = _spoken(job)
        why = last_error(log) if job.status else f"{_adapter(workdir, job.name)} is not here"
        said.append(f"{job.name} {job.state} ({why}), log {log}")
    print(f"error: {'; '.join(said)}; {again}", file=sys.stderr)
    sys.exit(2 if all(job.status == 2 for job in failed) else 1)


def _spoken(job: Job) -> pathlib.Path:
    """The log in which a job says why it failed: that of Slurm, once it has taken the job."""
    logs = job.log.parent.glob(f"*-{job.name}-{slurm_job(job.log)}.log")
    return next(logs, job.log) if _BY.value == "slurm" else job.log


def _note_measured(config, workdir: pathlib.Path, jobs: Sequence[Job], there) -> None:
    """Keeps how long it took, if all languages were trained, from the beginning, in this run."""
    adapters = {x: _adapter(workdir, x) for x in config.languages}
    if there or not all(path.exists() for path in adapters.values()):
        logger.info("not a measurement of the time it takes: not all was trained in this run")
        return
    ledgers = {}
    for language, path in adapters.items():
        folder = workdir / "training" / read_json(path / "training.json")["folder"]
        ledgers[language] = read_json(folder / "ledger.json")
    if resumed := [x for x, ledger in ledgers.items() if ledger["attempts"] > 1]:
        logger.info("not a measurement of the time it takes: resumed %s", ", ".join(resumed))
        return
    ended = max(job.ended for job in jobs)
    began = min(job.began for job in jobs)
    spent = {job.name: job.ended - job.began for job in jobs}
    first = next(iter(ledgers.values()))
    # One program trains as many side by side as the config says.
    program = config.adapters_at_once or len(adapters)
    write_measured(
        workdir,
        adapters,
        by=_BY.value,
        at_once=program if _BY.value == "program" else _AT_ONCE.value or len(jobs),
        began=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        ended=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ended)),
        seconds=ended - began,
        languages={x: spent.get(x, spent.get(_ALL)) for x in adapters},
        device=first["device"],
        devices=first["devices"],
    )
    logger.info("all languages trained in %.0f s by the clock", ended - began)


def _merging(workdir: pathlib.Path) -> list[str]:
    """The command that merges: of the door, whose results the others find."""
    given = _config_flags(sys.argv[1:])
    if _RECIPES.value:
        given.append(f"--config.merge.recipes={tuple(_RECIPES.value)}")
    return [sys.executable, "-m", "langmerge_jax.merge", *given, f"--workdir={workdir}"]


if __name__ == "__main__":
    cli.run(main)
