"""Takes the steps of a training, with checkpoints, a log and a progress display."""

import dataclasses
import itertools
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

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
      ended: adapters that end an epoch with this step.
    """

    number: int
    names: list[str]
    rates: list[float]
    length: int
    arrays: dict[str, np.ndarray]
    tokens: dict[str, int]
    ids: dict[str, list[str]]
    ended: Sequence[str] = ()


def run_steps(
    what: str,
    state: Any,
    steps: Iterator[Step],
    total: int,
    advance: Callable[[Any, Step], tuple[Any, jax.Array, float]],
    *,
    validate: Callable[[Any, Sequence[str]], tuple[Any, dict[str, float]]] | None = None,
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
      validate: (state, adapters that ended an epoch) -> (state, {adapter: loss on validation}).
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
            if validate and step.ended:
                progress.update(loss=_record(log, clock, *pending))
                pending = None
                start = time.monotonic()
                state, losses = validate(state, step.ended)
                clock.leave_out(seconds := time.monotonic() - start)
                log.write("validation", seconds=seconds, step=number + 1, loss=losses)
                _tell(what, losses)
            ending = termination.asked(number + 1)
            # Also at the end: what is made of the state may take long, or be killed.
            if ending or checkpoints.due(number + 1) or number + 1 == total:
                if pending:
                    progress.update(loss=_record(log, clock, *pending))
                pending = None
                start = time.monotonic()
                checkpoints.save(number + 1, state)
                clock.leave_out(seconds := time.monotonic() - start)
                log.write("checkpoint", seconds=seconds, step=number + 1)
                ending = termination.asked(number + 1)
            if ending:
                checkpoints.close()
                logger.info(
                    "%s: ended by SIGTERM; step %d of %d is saved, the same command goes on",
                    *(what, number + 1, total),
                )
                sys.exit(128 + signal.SIGTERM)
    checkpoints.close()
    return state


def _tell(what: str, losses: dict[str, float]) -> None:
    each = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
    logger.info("%s: loss on validation: %s", what, each)


class _Termination:
    """Hears SIGTERM while it is entered, instead of what would be done about it otherwise.

    A process alone hears it itself. Of several that train together jax hears it, in each of them,
    and tells all of them the step to end with, one that none has begun.
    """

    # Steps of the trainings before: jax is told numbers that never go back.
    _earlier = 0

    def __enter__(self) -> "_Termination":
        self._asked, self._done = False, 0
        self._joined = jax.distributed.is_initialized()
        # Only the main thread may change who hears a signal.
        main = threading.current_thread() is threading.main_thread()
        self._hears = main and not self._joined
        if self._hears:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_) -> None:
        _Termination._earlier += self._done
        if self._hears:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def asked(self, done: int) -> bool:
        """Returns whether to end after `done` steps; to be called after each."""
        self._done = done
        if self._joined:
            return multihost_utils.reached_preemption_sync_point(self._earlier + done)
        return self._asked

    def _hear(self, *_) -> None:
        self._asked = True


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
