"""A command on a machine goes on by itself, and its status outlives it."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from tests.doors import ROOT


@pytest.fixture
def worker(tmp_path):
    """Asks worker.sh on a machine whose home is a folder; returns what it said."""

    def ask(*words: str) -> str:
        result = subprocess.run(
            ["bash", "launch/worker.sh", *words],
            cwd=ROOT,
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return ask


def state(worker, offset: int = 0) -> tuple[str, str]:
    """How the command stands, and its log from a byte on."""
    head, _, log = worker("poll", str(offset)).lstrip("\n").partition("\n")
    found = re.fullmatch(r"@@ (.*) @@ \d+ @@ .*", head)
    return found[1], log


def until(worker, wanted: str) -> str:
    """Waits for a state; returns the log."""
    end = time.monotonic() + 20
    while (found := state(worker))[0] != wanted:
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found[1]


def test_nothing_runs_before_anything_was_begun(worker):
    assert state(worker) == ("none", "")


def test_its_log_is_read_from_a_byte_on(worker):
    worker("start", "logs", "printf", "%s", "ä 2 4\n")
    assert until(worker, "ended 0") == "ä 2 4\n"
    assert state(worker, 5) == ("ended 0", "4\n")
    assert state(worker, 99) == ("ended 0", "")


def test_a_machine_that_ends_leaves_the_status_of_a_command_that_saved(worker, tmp_path):
    saves = 'trap "sleep 0.2; echo saved; exit 143" TERM; echo begun; while :; do sleep 0.05; done'
    worker("start", "logs", "bash", "-c", saves)
    while state(worker)[1] != "begun\n":
        time.sleep(0.05)
    assert state(worker)[0] == "running"
    pid = int((tmp_path / ".langmerge_jax/job/pid").read_text())
    os.killpg(pid, signal.SIGTERM)
    assert until(worker, "ended 143").endswith("saved\n")


def test_one_that_is_killed_with_all_around_it_is_lost(worker, tmp_path):
    worker("start", "logs", "sleep", "60")
    os.killpg(int((tmp_path / ".langmerge_jax/job/pid").read_text()), signal.SIGKILL)
    until(worker, "lost")


def test_beginning_again_ends_what_runs(worker, tmp_path):
    worker("start", "logs", "sleep", "60")
    first = pathlib.Path(f"/proc/{(tmp_path / '.langmerge_jax/job/pid').read_text().strip()}")
    assert first.exists()
    worker("start", "logs", "true")
    until(worker, "ended 0")
    assert not first.exists()
