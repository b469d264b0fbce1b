"""The job script runs its command as Slurm runs it, and puts itself into the queue again."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.doors import ROOT

FAKE = pathlib.Path(__file__).with_name("slurm")


@dataclasses.dataclass
class Cluster:
    """A Slurm cluster in a folder."""

    folder: pathlib.Path

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{FAKE}:{os.environ['PATH']}",
            "FAKE_CLUSTER": str(self.folder),
            "TEST_PYTHON": sys.executable,
        }

    def sbatch(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sbatch", *words],
            cwd=ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )

    def calls(self, tool: str) -> list[list[str]]:
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [call[1:] for call in map(json.loads, lines) if call[0] == tool]

    def log(self) -> str:
        return (self.folder / "langmerge-7.log").read_text()


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)


def run(cluster: Cluster, *command: str, tasks: int = 2) -> list[str]:
    """Runs a command as a job; returns the statuses with which it ended, one a start."""
    result = cluster.sbatch(f"--ntasks-per-node={tasks}", "launch/slurm.sbatch", *command)
    assert result.returncode == 0, result.stderr
    return [status for (status,) in cluster.calls("ended")]


def test_processes_find_each_other(cluster):
    code = (
        "import os, jax; from langmerge_jax.parallel.processes import join; join('auto'); "
        f"os.mkdir(f'{cluster.folder}/{{jax.process_index()}} of {{jax.process_count()}}')"
    )
    assert run(cluster, sys.executable, "-c", code) == ["0"], cluster.log()
    assert {"0 of 2", "1 of 2"} <= set(os.listdir(cluster.folder))
    # Each process sees all GPUs of its node, and takes that of its number.
    (words,) = cluster.calls("srun")
    assert words[:2] == ["--gpu-bind=none", "--kill-on-bad-exit=0"]


def test_a_job_that_was_told_to_end_is_put_into_the_queue_and_goes_on(cluster):
    once = f'mkdir {cluster.folder}/once-$SLURM_PROCID 2> /dev/null && exit 143; echo resumed "$@"'
    command = ("bash", "-c", once, "job", "a b", "c")
    assert run(cluster, *command) == ["143", "0"]
    first, second = cluster.calls("srun")
    assert first == second
    assert cluster.log().splitlines() == [
        "preempted: saved, and waits in the queue",
        "resumed a b c",
        "resumed a b c",
    ]


def test_a_job_is_not_put_into_the_queue_for_ever(cluster, monkeypatch):
    monkeypatch.setenv("FIRST_RESTART", "18")
    assert run(cluster, "sh", "-c", "exit 143", tasks=1) == ["143"] * 3
    last = cluster.log().splitlines()[-1]
    assert last.startswith("error: preempted, and not put into the queue again; run the same")


@pytest.mark.parametrize("status", ["1", "2"])
def test_a_job_that_fails_ends_with_its_status(cluster, status):
    assert run(cluster, "sh", "-c", f"exit {status}") == [status]
    assert cluster.calls("scontrol") == []


def test_a_process_that_failed_counts_for_more_than_those_that_it_ended(cluster):
    command = ("sh", "-c", "[ $SLURM_PROCID = 0 ] && exit 1; exit 143")
    assert run(cluster, *command) == ["1"]
    assert cluster.calls("scontrol") == []


@pytest.mark.parametrize(
    ("signal", "line"),
    [
        (
            "KILL",
            "error: a process was killed, mostly for want of memory on its node; give more by ",
        ),
        ("SEGV", "Segmentation fault"),
    ],
)
def test_a_process_that_a_signal_ended_failed_by_itself(cluster, signal, line):
    command = ("sh", "-c", f"[ $SLURM_PROCID = 0 ] && kill -{signal} $$; exit 143")
    assert run(cluster, *command) == ["1"]
    assert line in cluster.log().splitlines()[-1]
    assert cluster.calls("scontrol") == []


def test_processes_that_are_told_to_end_are_waited_for(cluster):
    """Slurm sends the signal to all processes of a step, the shells around them too."""
    saves = "trap 'sleep 1; mkdir saved-$SLURM_PROCID; exit 143' TERM; kill -TERM $PPID $$; exit 1"
    again = f"[ -d saved-$SLURM_PROCID ] && exit; {saves}"
    assert run(cluster, "sh", "-c", f"cd {cluster.folder}; {again}") == ["143", "0"]


def test_a_job_without_a_command_is_refused(cluster):
    assert run(cluster) == ["2"]
    assert cluster.log().startswith("error: no command; give it behind the script")
