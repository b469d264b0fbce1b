"""Kills an experiment at chosen moments, and compares what it ends with."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import Any

from langmerge_jax.training.steplog import ledger, read_log
from tests.doors import ROOT

CONFIG = "tests/tiny.py"
# Where a run is when one of these is there for the first time, in the order of the run.
MOMENTS = {
    "writing the corpus": ".corpus.unfinished",
    "pretraining": "training/base-*/pretrain-base/checkpoints/[0-9]*",
    "instruction tuning": "training/base-*/instruction-tune-base/checkpoints/[0-9]*",
    "adapter training": "training/en+ja-*/checkpoints/[0-9]*",
    "writing adapters": "adapters/en",
    "combined training": "training/combined-*/checkpoints/[0-9]*",
    "merging": "merged/ties_knots@1.0",
    "answering": "predictions/.journal/*/ja.jsonl",
    "evaluation": "predictions/combined",
    "scoring": "scores.json",
    "cutting ranks": "predictions/*-folded",
    "update training": "training/update-en-en-*/checkpoints/[0-9]*",
    "update evaluation": "updates/en/predictions/combined",
    "adding a language": "updates/es/adapters/es",
    "costs": "updates/es/changes.json",
    "report": ".figures.unfinished",
}
NUMBERS = (
    *("scores.json", "matrix.json", "tuning.json", "comparisons.json", "ranks.json"),
    *("routing.json", "baselines.json", "similarity.json"),
)


def kill_when(workdir: pathlib.Path, pattern: str, delay: float) -> str:
    """Starts a run and kills it once something is there and some more time has passed.

    Returns:
      "killed"; "past" if it was there before, and nothing was started; "ended" if the run was
      faster.
    """
    if list(workdir.glob(pattern)):
        return "past"
    command = [sys.executable, "-m", "langmerge_jax.experiment", f"--config={CONFIG}"]
    process = subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and not list(workdir.glob(pattern)):
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(f"{pattern} is not there after 300 s")
        time.sleep(0.002)
    time.sleep(delay)
    running = process.poll() is None
    if running:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return "killed" if running else "ended"


def kill_at(
    workdir: pathlib.Path, moments: list[str], rng: random.Random, longest: float
) -> list[dict[str, Any]]:
    """Kills a run at each moment in turn, after up to `longest` seconds more."""
    kills = []
    for moment in moments:
        delay = rng.uniform(0, longest)
        outcome = kill_when(workdir, MOMENTS[moment], delay)
        kills.append({"moment": moment, "seconds_later": round(delay, 3), "outcome": outcome})
    return kills


def differing(workdir: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Returns the adapters and numbers that are not the same to the byte in two finished runs."""
    names = [*NUMBERS, *(f"updates/{x}/changes.json" for x in ("en", "en-warm", "es"))]
    adapters = sorted(other.glob("**/adapters/*/adapter_model.safetensors"))
    assert adapters
    names += [str(path.relative_to(other)) for path in adapters]
    return [name for name in names if (workdir / name).read_bytes() != (other / name).read_bytes()]


def repeated(workdir: pathlib.Path, undisturbed: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what each training of a finished run did twice, and what it may have: `allowed`.

    Raises:
      AssertionError: if one ended with other steps or tokens than in the undisturbed run.
    """
    config = json.loads((workdir / "config.json").read_text())
    found = []
    for path in sorted(workdir.glob("training/**/steps.jsonl")):
        cost = ledger(read_log(path), 0)
        once = ledger(read_log(undisturbed / path.relative_to(workdir)), 0)
        assert (cost["steps"], cost["tokens"]) == (once["steps"], once["tokens"]), path
        name = str(path.parent.relative_to(workdir / "training"))
        settings = config["demo"]["base"] if name.startswith("base-") else config["train"]
        found.append(
            {
                "training": name,
                **{key: cost[key] for key in ("steps", "attempts", "repeated_steps")},
                # One interval for each kill.
                "allowed": settings["checkpoint_steps"] * (cost["attempts"] - 1),
            }
        )
    return found


def left_over(workdir: pathlib.Path) -> list[str]:
    """Returns what an unfinished run has and a finished one has not."""
    patterns = (
        "training/**/checkpoints",
        "**/.*.unfinished*",
        "**/.*.replaced",
        "**/.*.removed",
        "**/.journal",
    )
    return [str(path.relative_to(workdir)) for x in patterns for path in workdir.glob(x)]
