"""Kills an experiment at every moment again and again, and compares it with an undisturbed one.

  make reliability

writes benchmarks/reliability.json. A trial is one small experiment (tests/tiny.py), killed by
SIGKILL at each of the moments of tests/killing.py, a random while after each, and run again until
it is done.
"""

import json
import pathlib
import random
import sys
import tempfile
import time

from absl import app, flags

from benchmarks.machine import describe_machine
from langmerge_jax.files import write_json
from tests import killing
from tests.doors import door

_TRIALS = flags.DEFINE_integer("trials", 4, "How many.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the whiles.")
_LONGEST = flags.DEFINE_float("longest", 0.5, "Seconds after a moment, at most.")
_OUTPUT = flags.DEFINE_string("output", "benchmarks/reliability.json", "Where results go.")


def finish(workdir: pathlib.Path) -> None:
    """Runs an experiment to its end."""
    result = door("experiment", workdir)
    if result.returncode:
        sys.exit(f"{workdir}: ended with status {result.returncode}\n{result.stderr[-4000:]}")


def trial(workdir: pathlib.Path, undisturbed: pathlib.Path, rng: random.Random) -> dict:
    """Kills one experiment at every moment; returns what came of it."""
    kills = killing.kill_at(workdir, list(killing.MOMENTS), rng, _LONGEST.value)
    finish(workdir)
    trainings = killing.repeated(workdir, undisturbed)
    return {
        "kills": kills,
        "files_that_differ": killing.differing(workdir, undisturbed),
        "attempts_at_trainings": sum(x["attempts"] for x in trainings),
        "steps": sum(x["steps"] for x in trainings),
        "repeated_steps": sum(x["repeated_steps"] for x in trainings),
        "more_than_an_interval": [x for x in trainings if x["repeated_steps"] > x["allowed"]],
        "left_over": killing.left_over(workdir),
    }


def main(_) -> None:
    rng = random.Random(_SEED.value)
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        finish(place / "undisturbed")
        for number in range(_TRIALS.value):
            start = time.monotonic()
            found = trial(place / f"trial{number}", place / "undisturbed", rng)
            trials.append(found | {"seconds": round(time.monotonic() - start, 1)})
            print(json.dumps(trials[-1]), flush=True)
    bad = [
        x for x in trials if x["files_that_differ"] or x["more_than_an_interval"] or x["left_over"]
    ]
    result = {
        "machine": describe_machine(),
        "config": killing.CONFIG,
        "seed": _SEED.value,
        "kills": sum(kill["outcome"] == "killed" for x in trials for kill in x["kills"]),
        "trials_that_failed": len(bad),
        "trials": trials,
    }
    write_json(pathlib.Path(_OUTPUT.value), result)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    app.run(main)
