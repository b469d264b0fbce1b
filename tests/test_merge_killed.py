"""Killed, terminated or refused, the merge door leaves the old adapter, a whole one or none."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from langmerge_jax.adapters import Adapter, Factors, load_adapter, save_adapter, write_adapter
from tests.doors import ROOT, run_door

MODULES, SIZE, RANK = 300, 256, 8
# Where a merge is when this is true of the directory beside its output for the first time. The
# merged adapter has twice the rank.
MOMENTS = {
    "begun": lambda work: work.exists(),
    "half": lambda work: bytes_of(work) > MODULES * 2 * SIZE * 2 * RANK * 4 / 2,
    "texts": lambda work: (work / "adapter_config.json").exists(),
    "done": lambda work: (work / "merge.json").exists(),
}


def bytes_of(work):
    path = work / "adapter_model.safetensors"
    return path.stat().st_size if path.exists() else 0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two adapters of many modules, as a flag."""
    folder, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    for name in ("en", "ja"):
        modules = {}
        for i in range(MODULES):
            a, b = rng.normal(size=(RANK, SIZE)), rng.normal(size=(SIZE, RANK))
            modules[f"layers.{i}.q_proj"] = Factors(a.astype(np.float32), b.astype(np.float32), 1.0)
        save_adapter(folder / name, Adapter(modules))
    return f"--adapters=en={folder / 'en'},ja={folder / 'ja'}"


@pytest.fixture
def output(tmp_path):
    """Where a merge goes, and an older merge is, of one module."""
    factors = Factors(np.ones((1, 4), np.float32), np.ones((4, 1), np.float32), 1)
    write_adapter(tmp_path / "out", [("layers.0.q_proj", factors)], companions={"merge.json": "{}"})
    return tmp_path / "out"


def ended_at(moment, number, inputs, output):
    """Starts a merge and sends a signal at a moment; returns the status and what it said."""
    command = [sys.executable, "-m", "langmerge_jax.merge", *flags(inputs, output)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and not MOMENTS[moment](output.with_name(".out.unfinished")):
        assert time.monotonic() < deadline, moment
        time.sleep(0.0005)
    process.send_signal(number)
    _, said = process.communicate()
    return process.returncode, said


def flags(inputs, output):
    return [inputs, "--method=ties_knots", "--density=0.5", f"--output={output}"]


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_killed_at_any_moment_the_output_is_whole_and_a_rerun_leaves_nothing_else(inputs, output):
    ends = []
    for moment in MOMENTS:
        ends.append(ended_at(moment, signal.SIGKILL, inputs, output))
        if output.exists():
            assert len(load_adapter(output).modules) in (1, MODULES)
        else:
            assert len(load_adapter(output.with_name(".out.replaced")).modules) == 1
    # The later moments are short: it may be faster.
    assert [status for status, _ in ends[:2]] == [-signal.SIGKILL] * 2, ends
    assert all(status in (0, -signal.SIGKILL) for status, _ in ends), ends
    result = run_door("merge", *flags(inputs, output))
    assert result.returncode == 0, result.stderr
    assert len(load_adapter(output).modules) == MODULES
    assert names(output.parent) == ["out"]
    assert len(names(output)) == 4


def test_an_output_that_cannot_be_made_is_told_in_one_line(inputs, tmp_path):
    (tmp_path / "file").touch()
    result = run_door("merge", *flags(inputs, tmp_path / "file/out"))
    assert result.returncode == 1
    *_, line = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/file: File exists; no directory can be made there")
    assert "Traceback" not in result.stderr


def test_terminated_it_cleans_up_and_says_so_by_its_status(inputs, output):
    status, said = ended_at("half", signal.SIGTERM, inputs, output)
    assert status == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    assert names(output.parent) == ["out"]
    assert len(load_adapter(output).modules) == 1
