"""Commands that run side by side, their logs, and how each ended."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from langmerge_jax.watch import PREEMPTED

_KILLED, _INTERRUPTED = 128 + signal.SIGKILL, 128 + signal.SIGINT
# Seconds between two looks at what runs.
_LOOK = 0.2


@dataclasses.dataclass
class Job:
    """One command.

    Attributes:
      name: of the job.
      command: to run.
      log: receives what it says.
      status: with which it ended, None before.
      began, ended: seconds since the epoch, 0 before.
    """

    name: str
    command: Sequence[str]
    log: pathlib.Path
    status: int | None = None
    began: float = 0.0
    ended: float = 0.0
    _process: subprocess.Popen | None = None
    _cores: frozenset[int] = frozenset()

    @property
    def state(self) -> str:
        """What there is to say of it in a word or two."""
        if self.status is None:
            return "running" if self.began else "waiting"
        words = {0: "done", PREEMPTED: "preempted", _KILLED: "killed", _INTERRUPTED: "interrupted"}
        return words.get(self.status, f"failed with status {self.status}")

    @property
    def resumable(self) -> bool:
        """Whether it has not ended by itself, or not begun."""
        return self.status in (None, PREEMPTED, _KILLED, _INTERRUPTED)

    def send(self, number: int) -> None:
        """Sends a signal to it, if it still runs."""
        self._process.send_signal(number)

    def has_ended(self) -> bool:
        """Returns whether it has, and notes how."""
        status = self._process.poll()
        if status is not None and self.status is None:
            self.ended = time.time()
            self.status = status if status >= 0 else 128 - status
        return status is not None


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    *,
    show: Callable[[], None],
    passed_on: int = signal.SIGTERM,
    cancel: Callable[[Job], None] = lambda _: None,
    shares_cores: bool = False,
) -> bool:
    """Runs jobs until all have ended, some at a time.

    SIGTERM and SIGINT are passed on to those that run; no other is begun then.

    Args:
      jobs: each begins when one before it has ended.
      at_once: so many run side by side.
      show: is called over and over while they run.
      passed_on: what those that run get then.
      cancel: is called for each of them besides.
      shares_cores: whether each is kept to its share of this machine's cores.

    Returns:
      whether a signal came.
    """
    waiting, running = list(jobs), []
    shares = _shares(at_once) if shares_cores else [frozenset()] * at_once
    with _signals() as asked, contextlib.ExitStack() as left:
        while running or (waiting and not asked):
            while waiting and len(running) < at_once and not asked:
                free = next(s for s in shares if shares.count(s) > _taken(running, s))
                _start(waiting[0], free)
                # Where one could not be started, the others are not left alone.
                left.callback(waiting[0].send, signal.SIGTERM)
                running.append(waiting.pop(0))
            if asked and not asked.passed_on:
                asked.passed_on = True
                for job in running:
                    cancel(job)
                    job.send(passed_on)
            time.sleep(_LOOK)
            running = [job for job in running if not job.has_ended()]
            show()
        return bool(asked)


def _taken(running: Sequence[Job], share: frozenset[int]) -> int:
    return sum(job._cores == share for job in running)


def _start(job: Job, cores: frozenset[int]) -> None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job._cores, job.began = cores, time.time()
    with job.log.open("wb") as log, _kept_to(cores):
        job._process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A terminal's signals are this process's to pass on.
            start_new_session=True,
        )


def _shares(count: int) -> list[frozenset[int]]:
    """Returns the cores of each of `count` processes; with fewer cores some have the same one."""
    if not hasattr(os, "sched_getaffinity"):  # Linux alone has it.
        return [frozenset()] * count
    cores = sorted(os.sched_getaffinity(0))
    return [
        frozenset(cores[number::count] or [cores[number % len(cores)]]) for number in range(count)
    ]


@contextlib.contextmanager
def _kept_to(cores: frozenset[int]) -> Iterator[None]:
    """Has processes that are started within run on these cores; none leaves them all."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Asked:
    """Whether this process was asked to end."""

    def __init__(self):
        self._signals: list[int] = []
        self.passed_on = False

    def hear(self, number: int, _: object) -> None:
        self._signals.append(number)

    def __bool__(self) -> bool:
        return bool(self._signals)


@contextlib.contextmanager
def _signals() -> Iterator[_Asked]:
    asked = _Asked()
    before = {
        number: signal.signal(number, asked.hear) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def last_error(log: pathlib.Path) -> str:
    """Returns what the last line that says an error says, or else the last one of all."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (said or lines or ["it said nothing"])[-1]


def slurm_job(log: pathlib.Path) -> str | None:
    """Returns the number of the job that sbatch said it submitted, if it did."""
    found = re.search(r"^Submitted batch job (\d+)", log.read_text(errors="replace"), re.MULTILINE)
    return found and found[1]
