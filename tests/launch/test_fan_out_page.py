"""Every command of docs/fan_out.md is run dry, and what it would run is taken by the doors."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from langmerge_jax.errors import InputError
from launch import slices
from tests.doors import ROOT
from tests.pages import accepts, blocks, commands

COMMANDS = [shlex.split(x) for x in commands(block.text for block in blocks("docs/fan_out.md"))]
FAN_OUTS = {
    flag.removeprefix("--by="): words
    for words in COMMANDS
    for flag in words
    if words[2] == "launch.fan_out" and flag.startswith("--by=")
}


def test_all_commands_are_of_a_kind_that_is_run_below():
    assert {words[0] for words in COMMANDS} == {"python", "launch/local.sh", "sudo"}
    assert list(FAN_OUTS) == ["program", "process", "slurm", "tpu"]
    assert len(COMMANDS) == len(FAN_OUTS) + 1 + 3


@pytest.mark.parametrize("by", FAN_OUTS)
def test_a_fan_out_is_trainings_and_a_merge(by):
    result = subprocess.run(
        [sys.executable, *FAN_OUTS[by][1:], "--dry_run"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    *trainings, merge = map(shlex.split, result.stdout.splitlines())
    assert len(trainings) == (1 if by == "program" else 5)
    assert merge[1:3] == ["-m", "langmerge_jax.merge"]
    if by == "tpu":  # The trainings and merges of the others have no flag that these lack.
        accepts(trainings[0][trainings[0].index("--") + 1 :])
        accepts(["python", *merge[1:]])


def test_a_local_job_is_a_training():
    (words,) = [words for words in COMMANDS if words[0] == "launch/local.sh"]
    assert os.access(ROOT / words[0], os.X_OK)
    assert int(words[1])
    accepts(words[2:])


def test_the_share_is_mounted_by_the_command_that_is_asked_for_without_it():
    (mount,) = [shlex.join(words) for words in COMMANDS if words[:2] == ["sudo", "mount"]]
    workdir = pathlib.Path("/mnt/share/runs/mine")
    (options,) = [x.partition("=")[2] for x in FAN_OUTS["tpu"] if x.startswith("--tpu=")]
    with pytest.raises(InputError, match=f"after {re.escape(mount)}$"):
        slices.check(workdir, options, [], dry_run=False)
