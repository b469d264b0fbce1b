"""The train door as two processes of one job gives what it gives as one process."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from langmerge_jax.adapters import load_adapter
from tests.doors import ROOT
from tests.numbered import write_rows

GONE = (
    "another process of this job is gone; start the same command again in all of them, it goes on "
    "from the newest checkpoint"
)
LANGUAGES = ("en", "ja")
STEPS = {"en": 36, "ja": 8}


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tiny_config, make_base):
    """A tiny base and rows, and the flags that point at them: STEPS of each."""
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder, {"en": 36, "ja": 8})
    return {
        "config": "tests/tiny.py",
        "config.languages": str(LANGUAGES),
        "config.base": str(make_base(tiny_config)),
        "config.data.path": f"{folder}/{{language}}/{{split}}.jsonl",
        "config.adapters_at_once": "1",
        "config.train.batch_size": "4",
        "config.train.epochs": "4",
        "config.train.checkpoint_steps": "20",
        "config.cpu_devices": "2",
    }


@contextlib.contextmanager
def started(count: int, log: pathlib.Path, workdir: pathlib.Path, flags: dict[str, str]):
    """Yields that many processes of the train door, and a function that waits until they end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    log.mkdir()
    processes, given = [], {**flags, "workdir": str(workdir)}
    for number in range(count):
        if count > 1:
            given["distributed"] = f"localhost:{port},{count},{number}"
        command = [sys.executable, "-m", "langmerge_jax.train"]
        with (log / f"out{number}").open("w") as out, (log / f"err{number}").open("w") as err:
            processes.append(
                subprocess.Popen(
                    [*command, *(f"--{name}={value}" for name, value in given.items())],
                    cwd=ROOT,
                    stdout=out,
                    stderr=err,
                    # What works is a child of this one.
                    start_new_session=True,
                )
            )

    def ended(seconds: float = 300) -> list[Ended]:
        until = time.monotonic() + seconds
        statuses = [p.wait(max(0.0, until - time.monotonic())) for p in processes]
        texts = [[(log / f"{x}{i}").read_text() for x in ("out", "err")] for i in range(count)]
        return [Ended(s, *text) for s, text in zip(statuses, texts, strict=True)]

    try:
        yield processes, ended
    finally:  # One alone would wait for the others.
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(count: int, log: pathlib.Path, workdir: pathlib.Path, flags: dict[str, str]):
    with started(count, log, workdir, flags) as (_, ended):
        return ended()


def files(workdir: pathlib.Path) -> list[str]:
    """All files but TensorBoard's, whose names tell when they were written."""
    found = (x.relative_to(workdir) for x in workdir.rglob("*") if x.is_file())
    return sorted(str(x) for x in found if x.parent.name != "tensorboard")


def step_log(workdir: pathlib.Path, name: str) -> pathlib.Path | None:
    return next(workdir.glob(f"training/{name}-*/steps.jsonl"), None)


def wait_for_steps(workdir: pathlib.Path, process: subprocess.Popen) -> pathlib.Path:
    """Returns the log of English once it has three steps of the newest attempt."""
    until = time.monotonic() + 240
    earlier = step_log(workdir, "en")
    earlier = earlier.read_text().count('"step", ') if earlier else 0
    while not (path := step_log(workdir, "en")) or (
        path.read_text().count('"step", ') < earlier + 3
    ):
        assert time.monotonic() < until
        assert process.poll() is None, process.args
        time.sleep(0.01)
    return path


def cost(workdir: pathlib.Path, name: str) -> dict:
    (path,) = workdir.glob(f"training/{name}-*/ledger.json")
    return json.loads(path.read_text())


def assert_same_bytes(workdir: pathlib.Path, other: pathlib.Path):
    for name in LANGUAGES:
        weights = [x / "adapters" / name / "adapter_model.safetensors" for x in (workdir, other)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), name


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """The workdir that two processes of two devices filled, to be read only."""
    folder = tmp_path_factory.mktemp("two")
    first, second = run(2, folder / "log", folder / "work", flags)
    assert (first.status, second.status) == (0, 0), first.stderr + second.stderr
    # Before it stands what the collectives of CPUs print.
    assert first.stdout.splitlines()[-1] == f"adapters: {folder / 'work' / 'adapters'}"
    assert "train en: 36 steps" in first.stderr
    assert "adapters" not in second.stdout
    assert second.stderr == ""
    return folder / "work"


def test_two_processes_give_the_adapters_of_one(finished, flags, tmp_path):
    (alone,) = run(1, tmp_path / "log", tmp_path / "work", flags | {"config.cpu_devices": "4"})
    assert alone.status == 0, alone.stderr
    assert files(finished) == files(tmp_path / "work")
    for name in LANGUAGES:
        found, expected = (
            load_adapter(x / "adapters" / name) for x in (finished, tmp_path / "work")
        )
        assert found.modules.keys() == expected.modules.keys()
        for module, factors in expected.modules.items():
            assert np.abs(factors.b).max() > 1e-3
            np.testing.assert_allclose(found.modules[module].a, factors.a, rtol=0, atol=1e-5)
            np.testing.assert_allclose(found.modules[module].b, factors.b, rtol=0, atol=1e-5)
        two, one = cost(finished, name), cost(tmp_path / "work", name)
        assert (two["steps"], two["attempts"], two["devices"]) == (STEPS[name], 1, 4)
        assert two["tokens"] == one["tokens"]


def test_what_is_there_is_skipped(finished, flags, tmp_path):
    before = {name: (finished / name).stat().st_mtime_ns for name in files(finished)}
    first, second = run(2, tmp_path / "log", finished, flags)
    assert (first.status, second.status) == (0, 0), first.stderr + second.stderr
    assert "adapters there already, skipped: en, ja" in first.stderr
    assert second.stderr == ""
    assert {name: (finished / name).stat().st_mtime_ns for name in files(finished)} == before


def test_sigterm_to_one_of_them_ends_all_with_one_step_saved(finished, flags, tmp_path):
    workdir = tmp_path / "work"
    with started(2, tmp_path / "cut", workdir, flags) as (processes, ended):
        path = wait_for_steps(workdir, processes[0])
        # Held up, so that steps, however fast, are left when jax looks whether the signal came.
        os.killpg(processes[0].pid, signal.SIGSTOP)
        processes[1].terminate()
        time.sleep(2)
        os.killpg(processes[0].pid, signal.SIGCONT)
        first, second = ended(30)
    assert (first.status, second.status) == (143, 143), first.stderr + second.stderr
    (line,) = [x for x in first.stderr.splitlines() if "ended by SIGTERM" in x]
    saved = int(re.search(r"step (\d+) of 36 is saved", line)[1])
    assert 3 <= saved < 36
    assert max(int(x.name) for x in path.parent.glob("checkpoints/[0-9]*")) == saved
    assert not (workdir / "adapters").exists()

    first, second = run(2, tmp_path / "again", workdir, flags)
    assert (first.status, second.status) == (0, 0), first.stderr + second.stderr
    assert f"train en: goes on after step {saved} of 36" in first.stderr
    assert_same_bytes(workdir, finished)
    assert files(workdir) == files(finished)
    found = cost(workdir, "en")
    assert (found["steps"], found["attempts"], found["repeated_steps"]) == (36, 2, 0)


def local(workdir: pathlib.Path, flags: dict[str, str]) -> subprocess.Popen:
    """Starts two processes as launch/local.sh does; the first of them speaks into `said`."""
    given = [f"--{name}={value}" for name, value in {**flags, "workdir": str(workdir)}.items()]
    with workdir.with_name("said").open("w") as said:
        return subprocess.Popen(
            ["launch/local.sh", "2", sys.executable, "-m", "langmerge_jax.train", *given],
            cwd=ROOT,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def children(pid: int) -> list[int]:
    """The processes that a process started, first the one started first."""
    return list(map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
def test_a_local_job_of_which_one_was_killed_goes_on_and_ends_as_if_never_killed(
    finished, flags, tmp_path
):
    workdir, flags = tmp_path / "work", flags | {"peer_timeout": "10"}
    job = local(workdir, flags)
    try:
        wait_for_steps(workdir, job)
        (killed, left) = [pid for pid in children(job.pid) if children(pid)]
        os.kill(killed, signal.SIGKILL)
        assert job.wait(60) == 143
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert not pathlib.Path(f"/proc/{left}").exists()
    said = (tmp_path / "said").read_text()
    log = workdir / "logs" / "process-1.log"
    assert f"error: process 1 ended with status 143: {log}" in said
    assert said.splitlines()[-1].startswith("error: the job was ended; start the same command")
    assert log.read_text().splitlines()[-1] == f"error: {GONE}"

    assert local(workdir, flags).wait(300) == 0
    assert (tmp_path / "said").read_text().splitlines()[-1] == f"adapters: {workdir / 'adapters'}"
    # Only what the collectives of CPUs print.
    assert all(line.startswith("[Gloo]") for line in log.read_text().splitlines())
    assert_same_bytes(workdir, finished)
    assert cost(workdir, "en")["attempts"] == 2


@pytest.mark.parametrize(
    ("flags", "place"),
    [
        (["--workdir=given"], "given"),
        (["--workdir=other", "--workdir", "given", "--config=configs/mine.py"], "given"),
        (["--config=configs/mine.py", "--config.train.epochs=2"], "runs/mine"),
        (["--config", "configs/mine.py:demo", "--config.workdir=no"], "runs/mine-demo"),
    ],
)
def test_a_local_job_has_its_logs_in_its_workdir_and_says_so(flags, place, tmp_path):
    speaks = ["bash", "-c", 'echo "${@: -1}"; exit 3', "job"]
    job = subprocess.run(
        [ROOT / "launch/local.sh", "2", *speaks, *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert job.returncode == 3
    assert job.stderr == f"logs of the other processes: {place}/logs\n"
    log = tmp_path / place / "logs/process-1.log"
    assert re.fullmatch(r"--distributed=localhost:\d+,2,1\n", log.read_text())
    assert job.stdout == log.read_text().replace(",1\n", ",0\n")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [log]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("config.data.path", "nowhere/{language}.jsonl", "nowhere/en.jsonl: no such file"),
        ("config.lora.rank", "3", "belongs to another config: there lora.rank is 2, here 3"),
    ],
    ids=["rows", "workdir"],
)
def test_bad_input_ends_all_with_a_line(flag, value, message, finished, flags, tmp_path):
    workdir = finished if flag == "config.lora.rank" else tmp_path / "work"
    with started(2, tmp_path / "log", workdir, flags | {flag: value}) as (_, ended):
        for process in ended(60):
            assert process.status == 2, process.stderr
            (line,) = process.stderr.splitlines()
            assert line.startswith("error: ")
            assert message in line
