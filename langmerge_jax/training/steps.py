"""Takes the steps of a training, with checkpoints, a log and a progress display."""

import dataclasses
import itertools
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np

from langmerge_jax.progress import Progress
from langmerge_jax.training.checkpoint import Checkpoints
from langmerge_jax.training.steplog import StepLog

logger = logging.getLogger(__name__)

STEPS, CHECKPOINTS = "steps.jsonl", "checkpoints"


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step works on.

    Attributes:
      number: of the step, from 0.
      names: of the adapters, one a group.
      rates: their learning rates.
      length: tokens a row, padding counted.
      arrays: of `data.batching.pad`.
      tokens: {adapter: real tokens}.
      ids: {adapter: ids of its examples}.
    """

    number: int
    names: list[str]
    rates: list[float]
    length: int
    arrays: dict[str, np.ndarray]
    tokens: dict[str, int]
    ids: dict[str, list[str]]


class Program:
    """A function compiled once for each shape of its arguments, which says how long that took.

    Args:
      function: to be compiled.
      donate: places of the arguments whose memory it may take over.
      out_shardings: of what it returns.
    """

    def __init__(self, function: Callable, *, donate: tuple[int, ...], out_shardings: Any):
        self._jitted = jax.jit(function, donate_argnums=donate, out_shardings=out_shardings)
        self._compiled: dict[Hashable, Callable] = {}

    def __call__(self, shape: Hashable, *args: Any) -> tuple[Any, float]:
        """Returns what the function does, and the seconds spent on compiling it.

        Args:
          shape: stands for the shapes of all arguments.
          *args: of the function.
        """
        seconds = 0.0
        if shape not in self._compiled:
            start = time.monotonic()
            self._compiled[shape] = self._jitted.lower(*args).compile()
            seconds = time.monotonic() - start
        return self._compiled[shape](*args), seconds


def run_steps(
    what: str,
    state: Any,
    steps: Iterator[Step],
    total: int,
    advance: Callable[[Any, Step], tuple[Any, jax.Array, float]],
    *,
    log: StepLog,
    checkpoints: Checkpoints,
    load_seconds: float = 0.0,
) -> Any:
    """Takes all steps of a training, from its newest checkpoint if it has one.

    Args:
      what: a few words for the progress display.
      state: what a fresh training starts from.
      steps: all of them, from the first.
      total: how many.
      advance: (state, step) -> (state, loss [g], seconds spent on compiling).
      log: receives a line a step.
      checkpoints: where the state is kept meanwhile; removed at the end by the caller, once the
        result is safe.
      load_seconds: what was spent on loading before, for the log.

    Returns:
      The last state.

    Raises:
      FloatingPointError: if a loss is not finite.
      SystemExit: with status 143 if SIGTERM came, by which a scheduler takes a machine back: the
        step at hand is ended and its state saved before.
    """
    done, state = checkpoints.restore(state)
    devices = jax.tree.leaves(state)[0].sharding.device_set
    log.write(
        "start",
        seconds=load_seconds,
        step=done,
        device=next(iter(devices)).device_kind,
        devices=len(devices),
    )
    if done:
        logger.info("%s: goes on after step %d of %d", what, done, total)
    clock = _Clock()
    with Progress(what, total, "step", done) as progress, _Termination() as termination:
        pending = None
        for number, step in enumerate(itertools.islice(steps, done, None), done):
            state, loss, compiling = advance(state, step)
            if compiling:
                clock.leave_out(compiling)
                log.write("compile", seconds=compiling, length=step.length, groups=len(step.names))
            # One step behind, so that reading the loss does not hold the device up.
            if pending:
                progress.update(loss=_record(log, clock, *pending))
            pending = (number, step, loss)
            # Also at the end: what is made of the state may take long, or be killed.
            if checkpoints.due(number + 1) or number + 1 == total or termination.asked:
                progress.update(loss=_record(log, clock, *pending))
                pending = None
                start = time.monotonic()
                checkpoints.save(number + 1, state)
                clock.leave_out(seconds := time.monotonic() - start)
                log.write("checkpoint", seconds=seconds, step=number + 1)
            if termination.asked:
                checkpoints.close()
                logger.info(
                    "%s: ended by SIGTERM; step %d of %d is saved, the same command goes on",
                    *(what, number + 1, total),
                )
                sys.exit(128 + signal.SIGTERM)
    checkpoints.close()
    return state


class _Termination:
    """Hears SIGTERM while it is entered, instead of what would be done about it otherwise.

    Attributes:
      asked: whether it came.
    """

    def __enter__(self) -> "_Termination":
        self.asked = False
        # Only the main thread may change who hears a signal.
        self._hears = threading.current_thread() is threading.main_thread()
        if self._hears:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_) -> None:
        if self._hears:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def _hear(self, *_) -> None:
        self.asked = True


class _Clock:
    """Seconds between one step and the next, less what was left out."""

    def __init__(self):
        self._last, self._out = time.monotonic(), 0.0

    def leave_out(self, seconds: float) -> None:
        self._out += seconds

    def lap(self) -> float:
        now = time.monotonic()
        seconds = now - self._last - self._out
        self._last, self._out = now, 0.0
        return seconds


def _record(log: StepLog, clock: _Clock, number: int, step: Step, loss: jax.Array) -> float:
    """Writes one line of the step log and returns the mean loss."""
    values = np.asarray(loss).tolist()
    for name, value in zip(step.names, values, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss of adapter {name!r} is {value} at step {number}, on rows "
                f"{', '.join(step.ids[name])}; look at these, or lower the learning rate"
            )
    log.write(
        "step",
        step=number,
        seconds=clock.lap(),
        loss=dict(zip(step.names, values, strict=True)),
        tokens=step.tokens,
        slots=step.arrays["tokens"].size,
    )
    return sum(values) / len(values)
