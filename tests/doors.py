"""Runs a door as a user does, in a process of its own."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run_door(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m langmerge_jax.<name>`; returns the finished process."""
    command = [sys.executable, "-m", f"langmerge_jax.{name}", *flags]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


def door(name: str, workdir: pathlib.Path, *flags: str, config: str = "tests/tiny.py"):
    """Runs a door on a config and a workdir; returns the finished process."""
    return run_door(name, f"--config={config}", f"--workdir={workdir}", *flags)


def refused_line(name: str, *flags: str) -> str:
    """The one line with which a door refuses; it is the last, and its status is 2."""
    result = run_door(name, *flags)
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    said = [line for line in lines if line.startswith("error: ")]
    assert len(said) == 1, result.stderr
    assert lines[-1] == said[0]
    assert "Traceback" not in result.stderr
    return said[0]
