"""What the system refuses ends a door with one line and status 1."""

import subprocess
import sys

import pytest

from tests.doors import ROOT

FAILING = """
import errno, os
from langmerge_jax import cli
def main():
    {}
cli.run(main)
"""


def line_of(result):
    """The one line with which a door ends."""
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("main", "line"),
    [
        (
            "raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/data/out')",
            "error: /data/out: No space left on device; free space or choose another directory",
        ),
        ("raise OSError(errno.EIO, 'I/O error', '/x')", "error: /x: I/O error; check that path"),
        ("raise ConnectionResetError(errno.ECONNRESET, 'Reset')", "error: Reset"),
        ("raise OSError('no file\\nof that name')", "error: no file of that name"),
        ("raise TimeoutError", "error: TimeoutError"),
    ],
)
def test_what_the_system_refuses_is_told_with_a_way_out(main, line):
    command = [sys.executable, "-c", FAILING.format(main)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert line_of(result) == line


def test_a_bug_keeps_its_traceback():
    command = [sys.executable, "-c", FAILING.format("raise KeyError('bug')")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" in result.stderr
