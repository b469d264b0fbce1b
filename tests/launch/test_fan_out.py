"""Languages trained apart are those trained together, whatever fails on the way."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.doors import ROOT
from tests.numbered import write_rows

COUNTS = {"en": 40, "de": 12, "fr": 8, "ja": 12, "zh": 8}
RECIPES = ("ties_knots@0.5",)


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tiny_config, make_base):
    """The flags of a config of five languages over a tiny base."""
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder, COUNTS)
    return [
        "--config=tests/tiny.py",
        f"--config.languages={tuple(COUNTS)}",
        f"--config.base={make_base(tiny_config)}",
        f"--config.data.path={folder}/{{language}}/{{split}}.jsonl",
        "--config.adapters_at_once=1",
        "--config.train.batch_size=4",
        "--config.train.epochs=2",
        "--config.train.keep=last",
        "--config.train.checkpoint_steps=8",
        f"--config.merge.recipes={RECIPES}",
        "--config.cpu_devices=1",
    ]


def start(workdir, *flags, env=None):
    """Starts a fan-out whose last words are read with `ended`."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch.fan_out", f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, status):
    """Waits for a fan-out; returns what it said on stdout and stderr, by lines."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, out + err
    return out.splitlines(), err.splitlines()


def wait_until(there, process):
    until = time.monotonic() + 120
    while not (found := there()):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return found


def contents(workdir):
    """Adapters and merges, to the byte."""
    paths = sorted(workdir.glob("*/*/adapter_model.safetensors"))
    return {str(path.relative_to(workdir)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def together(flags, tmp_path_factory):
    """The workdir of a fan-out by one program, to be read only."""
    workdir = tmp_path_factory.mktemp("runs") / "together"
    out, err = ended(start(workdir, *flags), 0)
    assert out[-1] == f"results: {workdir}"
    assert any(line.endswith("all  done in " + line.split()[-2] + " s") for line in err), err
    assert {x.split("/")[1] for x in contents(workdir)} == {*COUNTS, *RECIPES}
    return workdir


def test_one_program_is_a_measurement_too(together):
    found = json.loads((together / "fan_out.json").read_text())
    assert (found["by"], found["at_once"], found["devices"]) == ("program", 1, 1)
    assert found["languages"].keys() == COUNTS.keys()
    assert 0 < found["seconds"] == pytest.approx(found["languages"]["en"])


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_five_processes_one_killed_midway_end_as_one_program(together, flags, tmp_path):
    workdir = tmp_path / "work"
    apart = [*flags, "--by=process", "--at_once=2", "--every=0.1"]
    process = start(workdir, *apart)

    def log():
        found = list(workdir.glob("training/en-*/steps.jsonl"))
        return found and found[0].read_text().count('"step", ') >= 5

    wait_until(log, process)
    pids = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (pid,) = [x for x in pids if "--languages=en" in pathlib.Path(f"/proc/{x}/cmdline").read_text()]
    # Two at a time share the cores of this machine.
    assert len(os.sched_getaffinity(int(pid))) == max(1, len(os.sched_getaffinity(0)) // 2)
    # Held where it is for many looks, of which one has to tell of it.
    os.kill(int(pid), signal.SIGSTOP)
    time.sleep(2)
    os.kill(int(pid), signal.SIGKILL)
    _, err = ended(process, 143)
    assert err[-1].startswith("error: preempted; missing: en; run again")
    assert any("en  running, step" in line and ", loss en " in line for line in err), err
    assert not (workdir / "merged").exists()
    assert sorted(x.name for x in (workdir / "adapters").iterdir()) == sorted({*COUNTS} - {"en"})

    out, err = ended(start(workdir, *apart), 0)
    assert out[-1] == f"results: {workdir}"
    assert any("there already, taken as they are: de, fr, ja, zh" in line for line in err)
    assert any("not a measurement of the time it takes" in line for line in err)
    assert not (workdir / "fan_out.json").exists()
    (ledger,) = workdir.glob("training/en-*/ledger.json")
    assert json.loads(ledger.read_text())["attempts"] == 2
    assert contents(workdir) == contents(together)


# Takes a job as Slurm would, and gives its adapter from a workdir where it was trained.
SBATCH = """#!/usr/bin/env bash
echo "$@" >>"$FAKE/sbatch"
for argument in "$@"; do
    case $argument in
    --output=*) output=${argument#*=} ;;
    --languages=*) language=${argument#*=} ;;
    --workdir=*) workdir=${argument#*=} ;;
    esac
done
if [[ -e $FAKE/refuse-$language ]]; then
    echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
    exit 1
fi
echo "Submitted batch job $$"
if [[ -e $FAKE/fail-$language ]]; then
    echo "error: the loss is nan" >"${output//%j/$$}"
    exit "$(<"$FAKE/fail-$language")"
fi
while [[ -e $FAKE/hold ]]; do sleep 0.1; done
mkdir -p "$workdir/adapters"
cp -r "$TRAINED/adapters/$language" "$workdir/adapters/.$language"
mv "$workdir/adapters/.$language" "$workdir/adapters/$language"
"""


@pytest.fixture
def slurm(together, tmp_path):
    """A folder that tells of the calls of a Slurm, and what makes it the one that is found."""
    folder = tmp_path / "fake"
    (folder / "bin").mkdir(parents=True)
    for name, text in (("sbatch", SBATCH), ("scancel", '#!/bin/sh\necho "$@" >>"$FAKE/scancel"\n')):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return folder, {"PATH": path, "FAKE": str(folder), "TRAINED": str(together)}


def test_what_slurm_refused_and_what_failed_there_is_all_that_runs_again(
    slurm, together, flags, tmp_path
):
    folder, env = slurm
    workdir = tmp_path / "work"
    by = [*flags, "--by=slurm", "--sbatch=--partition=gpu --time=60", "--name=mine"]
    (folder / "refuse-ja").touch()
    (folder / "fail-zh").write_text("1")
    _, err = ended(start(workdir, *by, env=env), 1)
    (log,) = (workdir / "logs").glob("mine-zh-*.log")
    assert err[-1] == (
        "error: ja failed with status 1 (sbatch: error: QOSMaxSubmitJobPerUserLimit), log "
        f"{workdir}/logs/fan_out-ja.log; zh failed with status 1 (the loss is nan), log {log}; "
        "run again, it takes up what is missing"
    )
    calls = (folder / "sbatch").read_text().splitlines()
    assert len(calls) == 5
    (call,) = [call for call in calls if "--languages=en" in call]
    assert call.startswith(
        f"--wait --job-name=mine-en --output={workdir}/logs/mine-en-%j.log --partition=gpu "
        f"--time=60 {ROOT}/launch/slurm.sbatch python -m langmerge_jax.train --config=tests/tiny.py"
    )
    assert call.endswith(f"--workdir={workdir} --languages=en --distributed=auto")

    (folder / "refuse-ja").unlink()
    (folder / "fail-zh").unlink()
    out, _ = ended(start(workdir, *by, env=env), 0)
    assert out[-1] == f"results: {workdir}"
    again = (folder / "sbatch").read_text().splitlines()[5:]
    assert sorted(re.search("--languages=(.*?) ", call)[1] for call in again) == ["ja", "zh"]
    assert contents(workdir) == contents(together)


def test_a_signal_cancels_the_jobs_of_slurm_and_begins_no_other(slurm, flags, tmp_path):
    folder, env = slurm
    (folder / "hold").touch()
    process = start(tmp_path / "work", *flags, "--by=slurm", "--at_once=2", env=env)
    logs = [tmp_path / "work" / "logs" / f"fan_out-{x}.log" for x in ("en", "de")]
    wait_until(lambda: all(x.exists() and "job" in x.read_text() for x in logs), process)
    process.send_signal(signal.SIGTERM)
    _, err = ended(process, 143)
    assert err[-1].startswith("error: ended by a signal; missing: en, de, fr, ja, zh; run again")
    numbers = [log.read_text().split()[-1] for log in logs]
    assert sorted((folder / "scancel").read_text().split()) == sorted(numbers)
    assert len((folder / "sbatch").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--languages=en,es"], "--languages=es: the languages of this run are en, de, fr, ja, zh"),
        (["--config.combined=True"], "combined=True: is one training; start the train door"),
        (["--by=tpu", "--sbatch=-p x"], "--sbatch is for --by=slurm, not --by=tpu"),
        (["--at_once=2"], "--at_once is of jobs; one program takes config.adapters_at_once"),
    ],
)
def test_bad_input_is_refused_in_a_line(given, message, flags, tmp_path):
    _, err = ended(start(tmp_path / "work", *flags, *given), 2)
    assert err == [f"error: {message}"]
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("of_en", "of_ja", "status"), [(2, 2, 2), (2, 1, 1), (143, 2, 2), (143, 143, 143)]
)
def test_the_status_is_that_of_what_failed(of_en, of_ja, status, slurm, flags, tmp_path):
    folder, env = slurm
    (folder / "fail-en").write_text(str(of_en))
    (folder / "fail-ja").write_text(str(of_ja))
    given = ["--by=slurm", "--languages=en,ja"]
    _, err = ended(start(tmp_path / "work", *flags, *given, env=env), status)
    assert err[-1].startswith("error: ")
    assert "run again" in err[-1]


def test_a_dry_run_prints_the_commands_of_slices_and_runs_none(flags, together, tmp_path):
    workdir = tmp_path / "mine"
    shutil.copytree(together / "adapters" / "en", workdir / "adapters" / "en")
    given = ["--by=tpu", "--tpu=--zone=us-west4-a --accelerator=v5litepod-8", "--dry_run"]
    out, _ = ended(start(workdir, *flags, *given, "--recipes=ties_knots@0.5"), 0)
    assert len(out) == 5
    assert out[0].startswith(
        f"{sys.executable} -m launch.tpu_pod run --name=mine-de --zone=us-west4-a "
        "--accelerator=v5litepod-8 -- python -m langmerge_jax.train --config=tests/tiny.py"
    )
    assert out[0].endswith(f"--workdir={workdir} --languages=de --distributed=auto")
    assert "-m langmerge_jax.merge" in out[-1]
    assert "--config.merge.recipes=('\"'\"'ties_knots@0.5'\"'\"',)" in out[-1]
    assert [x.name for x in workdir.iterdir()] == ["adapters"]
