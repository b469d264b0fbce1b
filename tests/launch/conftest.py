"""A Google Cloud in a folder, and the launcher run against it as a user does."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.doors import ROOT

# A shell has what it starts in the background ignore it, and so everything that this starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

FAKE = pathlib.Path(__file__).with_name("google")
QUICK = ("--poll_seconds=0.1", "--ssh_seconds=3", "--lost_seconds=0.5", "--peers_seconds=2")
SLICE = ("--name=mine", "--zone=us-west4-a", "--accelerator=v5litepod-16")
SHARE = "--share=10.0.0.2:/vol"
WORKDIR = "--workdir=/mnt/share/runs/mine"


@dataclasses.dataclass
class Cloud:
    """A Google Cloud in a folder; tests/launch/google/cloud.py says what can go wrong there."""

    folder: pathlib.Path
    started: list[subprocess.Popen] = dataclasses.field(default_factory=list)

    def faults(self, **faults) -> None:
        (self.folder / "faults.json").write_text(json.dumps(faults))

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{FAKE}:{os.environ['PATH']}",
            "FAKE_CLOUD": str(self.folder),
            "TEST_PYTHON": sys.executable,
        }

    def begin(self, action: str, *flags: str, command: tuple[str, ...] = ()) -> subprocess.Popen:
        """Starts the launcher on the slice of the tests."""
        given = (*SLICE, *QUICK, f"--folder={self.folder / 'kept'}", *flags)
        behind = ("--", *command) if command else ()
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.tpu_pod", action, *given, *behind],
            cwd=ROOT,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Ends what a failed test left, here and on the machines."""
        for process in self.started:
            process.kill()
            process.wait()
        for path in self.folder.glob("worker*/.langmerge_jax/job/pid"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(path.read_text()), signal.SIGKILL)

    def launch(self, action: str, *flags: str, command: tuple[str, ...] = ()):
        """Runs the launcher to its end; returns the finished process."""
        process = self.begin(action, *flags, command=command)
        output, error = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, output, error)

    def run(self, script: str, *flags: str):
        """Runs a shell script on the slice; in it, $DIR is a workdir on the share."""
        return self.launch("run", SHARE, *flags, command=job(script))

    def calls(self) -> list[list[str]]:
        """What gcloud was asked."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self) -> list[str]:
        return [" ".join(call[2:4]) for call in self.calls()]

    def alive(self) -> dict[str, dict]:
        """The slices that are there."""
        return json.loads((self.folder / "state.json").read_text())["slices"]


def job(script: str) -> tuple[str, ...]:
    setting = 'DIR=${1#*=}; mkdir -p "$DIR"; '
    return ("bash", "-c", setting + script, "job", WORKDIR)


@pytest.fixture
def cloud(tmp_path) -> Iterator[Cloud]:
    (tmp_path / "share").mkdir()
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.end()
