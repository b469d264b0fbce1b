"""Processes of one job find each other, or say why not; what one decides, all know."""

import contextlib
import os
import signal
import socket
import subprocess
import sys

import jax
import pytest

from langmerge_jax.errors import InputError
from langmerge_jax.parallel.processes import agree, alike, join, leads
from tests.doors import ROOT, refused_line


@pytest.fixture
def joined(monkeypatch):
    """What jax is told, instead of what it would do."""
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: told.append(given))
    return told


def test_a_process_alone_joins_nothing_and_decides_for_itself(joined):
    join("")
    assert joined == []
    assert leads()
    assert alike("some digest")
    assert agree(lambda: (1, 2)) == (1, 2)
    with pytest.raises(KeyError):
        agree(lambda: {}["missing"])


@pytest.mark.parametrize("address", ["localhost:1234", "10.0.0.1:80", "[::1]:8476"])
def test_by_hand(address, joined):
    join(f"{address},4,3")
    (given,) = joined
    assert given["coordinator_address"] == address
    assert (given["num_processes"], given["process_id"]) == (4, 3)


def test_jax_finds_the_cluster_itself(joined):
    join("auto")
    assert not {"coordinator_address", "num_processes", "process_id"} & joined[0].keys()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("yes", "--distributed=yes: give auto, or <host>:<port>,<number of processes>,<number"),
        ("localhost,2,0", "give auto, or <host>:<port>"),
        ("localhost:1234,2", "give auto, or <host>:<port>"),
        ("localhost:1234,2,-1", "give auto, or <host>:<port>"),
        ("localhost:1234,2,0,0", "give auto, or <host>:<port>"),
        ("localhost:1234,2,2", "2 processes have the numbers below 2, not 2; give <host>:<port>"),
        ("localhost:1234,0,0", "0 processes have the numbers below 0, not 0"),
    ],
)
def test_bad_text_is_refused(how, message, joined):
    with pytest.raises(InputError) as refused:
        join(how)
    assert message in str(refused.value)
    assert joined == []


def test_without_a_cluster_the_door_says_what_to_give(tmp_path):
    line = refused_line(
        "train", "--config=tests/tiny.py", f"--workdir={tmp_path / 'w'}", "--distributed=auto"
    )
    assert "--distributed=auto: jax finds no cluster that it knows" in line
    assert "give <host>:<port>,<number of processes>,<number of this one, from 0>" in line
    assert not (tmp_path / "w").exists()


TWO_PROCESSES = """
import pathlib, sys, time
from langmerge_jax import cli
from langmerge_jax.errors import InputError
from langmerge_jax.parallel.processes import agree, alike, join, leads

sys.argv, (address, number, file) = sys.argv[:1], sys.argv[1:]

def refuse():
    raise InputError("the rank is bad")

def fail():
    raise KeyError("bug")

def main():
    join(f"{address},2,{number}")
    assert leads() == (number == "0")
    path = pathlib.Path(file)
    if not leads():
        time.sleep(0.5)
        path.write_text("written before")
    assert agree(path.read_text) == "written before"
    assert agree(lambda: path.write_text("written in it")) == 13
    assert path.read_text() == "written in it"
    given = {"名前": [1, 0.5, None, {}], "long": "x" * 100_000}
    assert agree(lambda: given) == given
    assert agree(lambda: None) is None
    assert alike("ab") and not alike("ab" if leads() else "ac")
    try:
        agree(refuse)
    except InputError as error:
        assert str(error) == "the rank is bad"
        agree(fail)

cli.run(main)
"""


def test_two_processes_agree(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, address, str(number), str(tmp_path / "file")],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        errors = [process.communicate(timeout=100)[1] for process in processes]
    finally:  # One alone would wait for the other.
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 1], errors
    # A bug keeps its traceback, once.
    assert errors[0].rstrip().endswith("KeyError: 'bug'")
    assert errors[1] == "error: process 0 failed: KeyError: 'bug'\n"


WATCHED = """
import sys, time
from langmerge_jax import cli, watch

sys.argv, (address, number, how) = sys.argv[:1], sys.argv[1:]

def main():
    watch.watched()
    from langmerge_jax.parallel.processes import agree, join
    join(f"{address},2,{number}", 5)
    for count in range(10_000):
        agree(lambda: count)
        if count == 3:
            print("they agree", flush=True)
            if how == "fails":
                raise KeyError("bug")
        time.sleep(0.02)

cli.run(main)
"""
GONE = "error: another process of this job is gone; start the same command again in all of them"


@pytest.mark.parametrize(
    ("lost", "how"), [(0, "killed"), (1, "killed"), (1, "stopped"), (1, "fails")]
)
def test_a_lost_process_ends_the_other_in_time_with_a_line(lost, how):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WATCHED, address, str(number), how * (number == lost)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # What works is a child of this one.
            start_new_session=True,
        )
        for number in range(2)
    ]
    try:
        for process in processes:
            while "they agree" not in (line := process.stdout.readline()):
                assert line, process.stderr.read()
        if how == "killed":
            processes[lost].kill()
        elif how == "stopped":
            os.killpg(processes[lost].pid, signal.SIGSTOP)
        # Five seconds, and those in which jax looks whether they are over.
        _, said = processes[1 - lost].communicate(timeout=30)
        assert processes[1 - lost].returncode == 143
        assert said.splitlines()[-1].startswith(GONE)
        if how == "fails":
            assert "KeyError: 'bug'" in processes[lost].communicate(timeout=30)[1]
            assert processes[lost].returncode == 1
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
