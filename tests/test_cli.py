"""What the system refuses ends a door with one line and status 1."""

import subprocess
import sys

import pytest

from langmerge_jax import cli
from langmerge_jax.errors import InputError
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
        ("raise FloatingPointError('the loss is nan')", "error: the loss is nan"),
    ],
)
def test_what_the_system_refuses_is_told_with_a_way_out(main, line):
    command = [sys.executable, "-c", FAILING.format(main)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert line_of(result) == line


def test_memory_that_does_not_suffice_is_told_with_what_to_lower():
    main = "import jax.numpy as jnp; jnp.zeros(1 << 50, jnp.int8).block_until_ready()"
    code = FAILING.format(main).replace("run(main)", "run(main, too_much='take fewer rows')")
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert line_of(result) == (
        "error: the memory does not suffice (RESOURCE_EXHAUSTED: Out of memory allocating "
        f"{1 << 50} bytes); take fewer rows"
    )


def test_a_bug_keeps_its_traceback():
    command = [sys.executable, "-c", FAILING.format("raise KeyError('bug')")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("text", ["10", "5:5", "7:3", "-1:3", "1:2:3", "a:b", ":", "", "1.5:2"])
def test_steps_that_are_no_span_are_refused(text):
    with pytest.raises(InputError, match=f"^--profile_steps={text}: not FIRST:END .*write 10:15"):
        cli.span("profile_steps", text)


def test_steps_are_a_span_without_its_end():
    assert cli.span("profile_steps", "10:15") == range(10, 15)
    assert not cli.span("profile_steps", None)
