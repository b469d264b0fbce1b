"""The record of a training run, a JSON value a line, and what it says the run cost."""

import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

# What devices are paid for beside the steps.
_APART = ("start", "compile", "validation")


class Log(Protocol):
    """What is told of each event of a training."""

    def write(self, event: str, **values: Any) -> None:
        """Takes one event."""


class Logs:
    """Tells several logs of each event.

    Args:
      *logs: in this order.
    """

    def __init__(self, *logs: Log):
        self._logs = logs

    def write(self, event: str, **values: Any) -> None:
        """Takes one event."""
        for log in self._logs:
            log.write(event, **values)


class StepLog:
    """Appends to the record of one training run, over all attempts to finish it.

    Lines have an `event`:
      start       attempt, step it starts from, device, devices, seconds of loading before it, and
                  `peak`, the FLOP/s that all devices could do together, null if not known
      compile     seconds, and which shape was compiled
      checkpoint  seconds the training stood still for it, and steps done
      validation  seconds, steps done, and for each adapter that ended an epoch its loss
      profile     seconds it stood still to start or end a profile; in no sum of the ledger
      step        number, seconds, and for each adapter loss, learning rate and tokens; `slots` are
                  the tokens the device worked on, padding counted; `flops` the model FLOPs, null
                  where they are not counted
      end         seconds from start to end

    Args:
      path: of the file; lines that are there stay, but for one that was cut off.
      writes: whether lines are kept; of several processes that train together one writes.
    """

    def __init__(self, path: pathlib.Path, *, writes: bool = True):
        if not writes:
            path = pathlib.Path(os.devnull)
        earlier = read_log(path) if path.is_file() else []
        self.attempt = sum(line["event"] == "start" for line in earlier)
        if path.is_file():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._start = time.monotonic()

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.write("end", seconds=time.monotonic() - self._start)
        self._file.close()

    def write(self, event: str, **values: Any) -> None:
        """Appends one line; it is in the file when this returns."""
        self._file.write(json.dumps({"event": event, "attempt": self.attempt, **values}) + "\n")


def read_log(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of a record; one that was cut off at the end is left out."""
    whole = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in whole[: whole.rfind("\n") + 1].splitlines()]


def speed(steps: Sequence[Mapping[str, Any]], peaks: Sequence[float | None]) -> dict[str, Any]:
    """Returns how fast steps were taken, and how much of that was padding.

    Args:
      steps: their lines of the record.
      peaks: of each step, the FLOP/s that its devices could do together, None if not known.

    Returns:
      tokens_per_second: real tokens; padding_share: of the slots; flops_per_second: model FLOPs;
      mfu: model FLOPs utilization, the share of the peak. None for what is not known.
    """
    seconds = sum(line["seconds"] for line in steps)
    slots = sum(line["slots"] for line in steps)
    tokens = sum(sum(line["tokens"].values()) for line in steps)
    # Lines of older versions have none.
    counted = [line.get("flops") for line in steps]
    flops = None if None in counted else sum(counted)
    possible = None
    if None not in peaks:
        possible = sum(line["seconds"] * peak for line, peak in zip(steps, peaks, strict=True))
    return {
        "tokens_per_second": tokens / seconds if seconds else None,
        "padding_share": 1 - tokens / slots if slots else None,
        "flops_per_second": flops / seconds if seconds and flops is not None else None,
        "mfu": flops / possible if possible and flops is not None else None,
    }


def ledger(lines: Iterable[Mapping[str, Any]], dollars_per_device_hour: float) -> dict[str, Any]:
    """Adds up what a training run cost.

    Device seconds count all steps, also those done twice because a run was killed between two
    checkpoints. What is done once whatever the number of steps, loading and compiling, is counted
    apart: it vanishes beside a long training and would hide what is measured beside a short one.

    Args:
      lines: of the record.
      dollars_per_device_hour: price of one device; device seconds, and the time of loading,
        compiling and validation, cost it.

    Returns:
      adapters: names; steps: done in the end; repeated_steps; attempts; device, devices;
      load_seconds, compile_seconds, checkpoint_seconds, validation_seconds, step_seconds, by the
      clock, and wall_seconds, their sum;
      device_seconds: step_seconds times devices; tokens: {adapter: real tokens}; slots: tokens
      with padding; flops: model FLOPs, None if some step has none; dollars; and what `speed` says
      of all steps, those done twice too.
    """
    lines = list(lines)
    by_event: dict[str, list] = {}
    for line in lines:
        by_event.setdefault(line["event"], []).append(line)
    starts, steps = by_event["start"], by_event.get("step", [])

    def seconds(event: str) -> float:
        return sum(line["seconds"] for line in by_event.get(event, []))

    # The last attempt at a step is the one that counts towards the result.
    final = {line["step"]: line for line in steps}
    tokens: dict[str, int] = {}
    for line in final.values():
        for name, count in line["tokens"].items():
            tokens[name] = tokens.get(name, 0) + count

    def device_seconds(event: str) -> float:
        found = by_event.get(event, [])
        return sum(line["seconds"] * starts[line["attempt"]]["devices"] for line in found)

    flops = [line.get("flops") for line in final.values()]
    peaks = [starts[line["attempt"]].get("peak") for line in steps]
    return {
        "adapters": sorted(tokens),
        "steps": len(final),
        "repeated_steps": len(steps) - len(final),
        "attempts": len(starts),
        "device": starts[-1]["device"],
        "devices": starts[-1]["devices"],
        "load_seconds": seconds("start"),
        "compile_seconds": seconds("compile"),
        "checkpoint_seconds": seconds("checkpoint"),
        "validation_seconds": seconds("validation"),
        "step_seconds": seconds("step"),
        "wall_seconds": sum(map(seconds, (*_APART, "checkpoint", "step"))),
        "device_seconds": device_seconds("step"),
        "tokens": tokens,
        "slots": sum(line["slots"] for line in final.values()),
        "flops": None if None in flops else sum(flops),
        **speed(steps, peaks),
        "dollars": sum(map(device_seconds, ("step", *_APART))) / 3600 * dollars_per_device_hour,
    }
