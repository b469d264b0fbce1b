"""Takes the steps of a training, with checkpoints, a log and a progress display."""

import collections
import contextlib
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

from langmerge_jax.progress import Progress, short
from langmerge_jax.training.checkpoint import Checkpoints
from langmerge_jax.training.profile import Profile
from langmerge_jax.training.steplog import Log, speed

logger = logging.getLogger(__name__)

STEPS, CHECKPOINTS = "steps.jsonl", "checkpoints"

# Steps that the progress display's rates are taken from.
_RECENT = 50


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
      lengths: of its sequences, without padding; only what counts FLOPs needs them.
    """

    number: int
    names: list[str]
    rates: list[float]
    length: int
    arrays: dict[str, np.ndarray]
    tokens: dict[str, int]
    ids: dict[str, list[str]]
    ended: Sequence[str] = ()
    lengths: Sequence[int] = ()

    @property
    def shape(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of its tokens [g, b, s] and targets [g, b, t]."""
        return self.arrays["tokens"].shape, self.arrays["target"].shape


def run_steps(
    what: str,
    state: Any,
    steps: Iterator[Step],
    total: int,
    advance: Callable[[Any, Step], tuple[Any, jax.Array, float]],
    *,
    validate: Callable[[Any, Sequence[str]], tuple[Any, dict[str, float]]] | None = None,
    log: Log,
    checkpoints: Checkpoints,
    load_seconds: float = 0.0,
    flops: Callable[[Step], int] | None = None,
    peak: float | None = None,
    profile: Profile | None = None,
) -> Any:
    """Takes all steps of a training, from its newest checkpoint if it has one.

    Args:
      what: a few words for the progress display.
      state: what a fresh training starts from.
      steps: all of them, from the first.
      total: how many.
      advance: (state, step) -> (state, loss [g], seconds spent on compiling).
      validate: (state, adapters that ended an epoch) -> (state, {adapter: loss on validation}).
      log: is told of every step, and of what else takes time.
      checkpoints: where the state is kept meanwhile; removed at the end by the caller, once the
        result is safe.
      load_seconds: what was spent on loading before, for the log.
      flops: model FLOPs of a step; None leaves them out.
      peak: FLOP/s that a device could do, None if not known.
      profile: of some steps.

    Returns:
      The last state.

    Raises:
      FloatingPointError: if a loss is not finite.
      SystemExit: with status 143 if SIGTERM came, by which a scheduler takes a machine back: the
        step at hand is ended and its state saved before.
    """
    done, state = checkpoints.restore(state)
    devices = jax.tree.leaves(state)[0].sharding.device_set
    possible = peak and peak * len(devices)
    log.write(
        "start",
        seconds=load_seconds,
        step=done,
        device=next(iter(devices)).device_kind,
        devices=len(devices),
        peak=possible,
    )
    if done:
        logger.info("%s: goes on after step %d of %d", what, done, total)
    clock, recent = _Clock(), _Recent(total, possible)
    with (
        Progress(what, total, "step", done) as progress,
        _Termination(done) as termination,
        profile or contextlib.nullcontext(),
    ):
        pending: list[tuple[int, Step, jax.Array]] = []

        def settle() -> None:
            """Reads the loss that is still out, if one is."""
            while pending:
                progress.update(**recent.after(_record(log, clock, flops, *pending.pop())))

        def aside(event: str, seconds: float, **values: Any) -> None:
            """Notes what the training stood still for."""
            clock.leave_out(seconds)
            log.write(event, seconds=seconds, **values)

        for number, step in enumerate(itertools.islice(steps, done, None), done):
            if profile and (seconds := profile.before(number, state)):
                aside("profile", seconds, step=number)
            state, loss, compiling = advance(state, step)
            if compiling:
                aside("compile", compiling, length=step.length, groups=len(step.names))
            # One step behind, so that reading the loss does not hold the device up.
            settle()
            pending.append((number, step, loss))
            if validate and step.ended:
                settle()
                start = time.monotonic()
                state, losses = validate(state, step.ended)
                aside("validation", time.monotonic() - start, step=number + 1, loss=losses)
                each = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
                logger.info("%s: loss on validation: %s", what, each)
            ending = termination.asked(number + 1)
            # Also at the end: what is made of the state may take long, or be killed.
            if ending or checkpoints.due(number + 1) or number + 1 == total:
                settle()
                start = time.monotonic()
                checkpoints.save(number + 1, state)
                aside("checkpoint", time.monotonic() - start, step=number + 1)
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


class _Termination:
    """Hears SIGTERM while it is entered, instead of what would be done about it otherwise.

    A process alone hears it itself. Of several that train together jax hears it, in each of them,
    and tells all of them the step to end with, one that none has begun.
    """

    # Steps of the trainings before: jax is told numbers that never go back.
    _earlier = 0

    def __init__(self, first: int):
        self._first = self._done = first

    def __enter__(self) -> "_Termination":
        self._asked = False
        self._joined = jax.distributed.is_initialized()
        # Only the main thread may change who hears a signal.
        main = threading.current_thread() is threading.main_thread()
        self._hears = main and not self._joined
        if self._hears:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_) -> None:
        _Termination._earlier += self._done - self._first
        if self._hears:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def asked(self, done: int) -> bool:
        """Returns whether to end after `done` steps; to be called after each."""
        self._done = done
        if self._joined:
            return multihost_utils.reached_preemption_sync_point(self._earlier + done - self._first)
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


class _Recent:
    """What the progress display says of the last steps.

    Args:
      total: steps of the training.
      peak: FLOP/s that all devices could do together, or None.
    """

    def __init__(self, total: int, peak: float | None):
        self._total, self._peak = total, peak
        self._lines: collections.deque[dict[str, Any]] = collections.deque(maxlen=_RECENT)

    def after(self, line: dict[str, Any]) -> dict[str, Any]:
        """Takes the values of one more step; returns arguments of `Progress.update`."""
        self._lines.append(line)
        found = speed(self._lines, [self._peak] * len(self._lines))
        said = [f"loss {sum(line['loss'].values()) / len(line['loss']):#.3g}"]
        for name, text in (
            ("tokens_per_second", lambda x: f"{short(x)} tok/s"),
            ("mfu", lambda x: f"MFU {100 * x:.2g} %"),
            ("flops_per_second", lambda x: f"{short(x, ' ')}FLOP/s"),
            ("padding_share", lambda x: f"pad {100 * x:.0f} %"),
        ):
            unwanted = name == "flops_per_second" and found["mfu"] is not None
            if found[name] is not None and not unwanted:
                said.append(text(found[name]))
        seconds = sum(line["seconds"] for line in self._lines) / len(self._lines)
        return {"note": ", ".join(said), "left": seconds * (self._total - line["step"] - 1)}


def _record(
    log: Log,
    clock: _Clock,
    flops: Callable[[Step], int] | None,
    number: int,
    step: Step,
    loss: jax.Array,
) -> dict[str, Any]:
    """Tells the log of one step, and returns what it was told."""
    values = np.asarray(loss).tolist()
    for name, value in zip(step.names, values, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss of adapter {name!r} is {value} at step {number}, on rows "
                f"{', '.join(step.ids[name])}; look at these, or lower the learning "
                "rate, in another workdir"
            )
    line = {
        "step": number,
        "seconds": clock.lap(),
        "loss": dict(zip(step.names, values, strict=True)),
        "learning_rate": dict(zip(step.names, step.rates, strict=True)),
        "tokens": step.tokens,
        "slots": step.arrays["tokens"].size,
        "flops": flops and flops(step),
    }
    log.write("step", **line)
    return line
