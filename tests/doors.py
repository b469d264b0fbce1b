"""Runs a door as a user does, in a process of its own."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def door(name: str, workdir: pathlib.Path, *flags: str, config: str = "tests/tiny.py"):
    """Runs `python -m langmerge_jax.<name>` on a config; returns the finished process."""
    command = [sys.executable, "-m", f"langmerge_jax.{name}", f"--config={config}"]
    return subprocess.run(
        [*command, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
