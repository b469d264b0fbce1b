"""Several processes work in one workdir at the same time, and none trips over another."""

import json
import subprocess
import sys
import time

import pytest

from langmerge_jax.config import default, to_json
from langmerge_jax.errors import InputError
from langmerge_jax.files import alone_in
from tests.doors import ROOT

# Each does the same at the same moment, again and again.
TOGETHER = """
import pathlib, sys, time
from langmerge_jax.config import claim_workdir, default
from langmerge_jax.files import remove_directory, remove_tree
folder, start = pathlib.Path(sys.argv[1]), float(sys.argv[2])
while time.time() < start:
    pass
for number in range(100):
    {}
"""


def together(folder, what, count=3):
    start = time.time() + 3
    command = [sys.executable, "-c", TOGETHER.format(what), str(folder), str(start)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(count)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, errors


def test_a_workdir_is_claimed_by_all_that_come_at_once(tmp_path):
    together(tmp_path, "claim_workdir(folder / str(number), default())")
    for number in range(100):
        (path,) = (tmp_path / str(number)).iterdir()
        assert json.loads(path.read_text()) == to_json(default())


def test_what_is_left_of_a_removal_is_removed_by_all_at_once(tmp_path):
    for number in range(100):
        for name in "abcdefgh":
            folder = tmp_path / str(number) / name
            folder.mkdir(parents=True)
            (folder / "file").touch()
    together(tmp_path, "remove_tree(folder / str(number))")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_one_process_s_alone_until_it_leaves(tmp_path):
    with alone_in(tmp_path / "x", waits=False):
        with (
            pytest.raises(InputError, match="/x: another process is writing it; wait for that"),
            alone_in(tmp_path / "x", waits=False),
        ):
            raise AssertionError
        with alone_in(tmp_path / "y", waits=True):
            pass
    with alone_in(tmp_path / "x", waits=False):
        pass
