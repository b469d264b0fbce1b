"""Killed anywhere and run again, an experiment ends with the numbers of one that was not killed."""

import json
import random

from tests import killing
from tests.doors import door

# `make reliability` kills at all moments, several times.
MOMENTS = (
    "pretraining",
    "instruction tuning",
    "adapter training",
    "writing adapters",
    "merging",
    "answering",
    "evaluation",
    "update training",
)


def test_killed_at_every_stage_the_numbers_are_the_same(finished, tmp_path):
    undisturbed, _ = finished
    workdir = tmp_path / "killed"
    kills = killing.kill_at(workdir, [*MOMENTS], random.Random(0), longest=0.2)
    assert [kill["outcome"] for kill in kills].count("killed") >= 7, kills
    result = door("experiment", workdir)
    assert result.returncode == 0, result.stderr
    assert killing.differing(workdir, undisturbed) == []
    for training in killing.repeated(workdir, undisturbed):
        assert training["repeated_steps"] <= training["allowed"], training
    assert killing.left_over(workdir) == []
    assert json.loads((workdir / "costs.json").read_text())["rows"]
