"""Languages trained apart are those trained together, whatever fails on the way."""

import dataclasses
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

from launch import gcloud, slices
from tests.doors import ROOT
from tests.launch.conftest import FAKE, QUICK, SHARE
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


def start(workdir, *flags, env=None, within=(), cwd=ROOT):
    """Starts a fan-out whose last words are read with `ended`; `within` another command."""
    return subprocess.Popen(
        [*within, sys.executable, "-m", "launch.fan_out", f"--workdir={workdir}", *flags],
        cwd=cwd,
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


# Gives the adapter of a language from a workdir where it was trained.
GIVE = """
for argument in "$@"; do
    case $argument in
    --output=*) output=${argument#*=} ;;
    --languages=*) language=${argument#*=} ;;
    --workdir=*) workdir=${argument#*=} ;;
    esac
done
give() {
    mkdir -p "$workdir/adapters"
    cp -r "$TRAINED/adapters/$language" "$workdir/adapters/.$language"
    mv "$workdir/adapters/.$language" "$workdir/adapters/$language"
}
"""

# Takes a job as Slurm would.
SBATCH = f"""#!/usr/bin/env bash
{GIVE}
echo "$@" >>"$FAKE/sbatch"
if [[ -e $FAKE/refuse-$language ]]; then
    echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
    exit 1
fi
echo "Submitted batch job $$"
if [[ -e $FAKE/fail-$language ]]; then
    echo "error: the loss is nan" >"${{output//%j/$$}}"
    exit "$(<"$FAKE/fail-$language")"
fi
while [[ -e $FAKE/hold ]]; do sleep 0.1; done
give
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
    by += ["--languages=en,ja,zh"]
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
    assert len(calls) == 3
    (call,) = [call for call in calls if "--languages=en" in call]
    assert call.startswith(
        f"--wait --job-name=mine-en --output={workdir}/logs/mine-en-%j.log --partition=gpu "
        f"--time=60 {ROOT}/launch/slurm.sbatch python -m langmerge_jax.train --config=tests/tiny.py"
    )
    assert call.endswith(f"--workdir={workdir} --languages=en --distributed=auto")

    (folder / "refuse-ja").unlink()
    (folder / "fail-zh").unlink()
    out, _ = ended(start(workdir, *by, env=env), 0)
    assert out[-1] == f"adapters: {workdir}/adapters; not merged without de, fr"
    again = (folder / "sbatch").read_text().splitlines()[3:]
    assert sorted(re.search("--languages=(.*?) ", call)[1] for call in again) == ["ja", "zh"]
    found, expected = contents(workdir), contents(together)
    assert [x.split("/")[:2] for x in found] == [["adapters", x] for x in ("en", "ja", "zh")]
    assert all(found[name] == expected[name] for name in found)


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


def test_a_job_that_ended_well_and_left_nothing_here_is_named(slurm, flags, tmp_path):
    folder, env = slurm
    (folder / "fail-en").write_text("0")
    workdir = tmp_path / "work"
    _, err = ended(start(workdir, *flags, "--by=slurm", "--languages=en", env=env), 1)
    assert err[-1].startswith(f"error: en done ({workdir}/adapters/en is not here), log {workdir}/")


# The python of a machine of a slice, where training takes no time.
PYTHON = f"""#!/usr/bin/env bash
[[ "$1 $2" == "-m langmerge_jax.train" ]] || exec {sys.executable} "$@"
{GIVE}
give
"""
# The stand-in for gcloud knows one slice at a time: Japanese has a cloud of its own.
GCLOUD = f"""#!/usr/bin/env bash
[[ "$*" != *my-run-ja* ]] || FAKE_CLOUD=$FAKE_CLOUD/ja
exec {FAKE}/gcloud "$@"
"""
# A share at /mnt/share that only what is started within sees.
MOUNTED = (
    *("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"),
    'mount -t tmpfs none /mnt; mkdir /mnt/share; mount --bind "$0" /mnt/share; exec "$@"',
)
TPU = "--zone=us-west4-a --accelerator=v5litepod-8"


@pytest.fixture
def slices_here(cloud, together, tmp_path):
    """What a fan-out over slices is started with, on a machine that has mounted their share."""
    within = (*MOUNTED, str(tmp_path / "share"))
    if shutil.which("unshare") is None or subprocess.run([*within, "true"]).returncode:
        pytest.skip("nobody may mount a share here, not even in a namespace of one's own")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "ja").mkdir()
    (tmp_path / "ja/share").symlink_to(tmp_path / "share")
    (tmp_path / "bin").mkdir()
    for name, text in (("python", PYTHON), ("bin/gcloud", GCLOUD)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = cloud.environment()
    env |= {"PATH": f"{tmp_path / 'bin'}:{env['PATH']}", "PYTHONPATH": str(ROOT)}
    env |= {"TEST_PYTHON": str(tmp_path / "python"), "TRAINED": str(together)}
    return {"env": env, "within": within, "cwd": tmp_path}


def test_slices_take_up_what_is_missing_and_are_merged(
    slices_here, cloud, together, flags, tmp_path
):
    workdir = tmp_path / "share/runs/My_run"
    for language in ("de", "fr", "zh"):
        shutil.copytree(together / "adapters" / language, workdir / "adapters" / language)

    def fan_out(status, *further):
        given = [*flags, "--by=tpu", f"--tpu={' '.join([TPU, SHARE, *QUICK, *further])}"]
        return ended(start("/mnt/share/runs/My_run", *given, **slices_here), status)

    cloud.faults(create=["RESOURCE_EXHAUSTED: Quota limit 'V5' has been exceeded."])
    _, err = fan_out(1)
    assert err[-1].startswith("error: en failed with status 1 (my-run-en (us-west4-a): ")
    assert "Quota limit 'V5' has been exceeded." in err[-1]
    said, _, status = err[-1].partition("; what lives and costs: python ")
    assert said.endswith(
        ", log /mnt/share/runs/My_run/logs/fan_out-en.log; run again, it takes up what is missing"
    )
    listed = subprocess.run(
        [sys.executable, *status.split()],
        cwd=tmp_path,
        env=slices_here["env"],
        capture_output=True,
        text=True,
    )
    assert listed.stdout == "nothing that was started here lives in us-west4-a\n", listed.stderr
    assert (workdir / "adapters/ja").exists()
    assert not (workdir / "merged").exists()

    cloud.faults()
    out, err = fan_out(0, "--delete_after=never")
    assert out[-1] == "results: /mnt/share/runs/My_run"
    assert any("still running: my-run-en (us-west4-a), ACTIVE" in line for line in err), err
    assert contents(workdir) == contents(together)
    of_ja = dataclasses.replace(cloud, folder=tmp_path / "ja")
    assert (set(cloud.alive()), set(of_ja.alive())) == ({"my-run-en"}, set())
    assert [x.verbs().count("queued-resources create") for x in (cloud, of_ja)] == [2, 1]
    # Whatever its user's number, a machine may write there.
    assert (workdir / "logs").stat().st_mode & 0o777 == 0o777


@pytest.mark.parametrize(
    ("run", "language", "name"),
    [
        ("sentiment_all", "en", "sentiment-all-en"),
        ("My.Run-", "zh_Hans", "my-run-zh-hans"),
        ("7B", "en", "run-7b-en"),
        ("_", "en", "run-en"),
        ("r" * 80, "ja", "r" * 60 + "-ja"),
        ("r" * 59 + "_" * 9, "ja", "r" * 59 + "-ja"),
    ],
)
def test_any_run_and_language_name_a_slice(run, language, name):
    assert slices.slice_name(run, language) == name
    gcloud.check(gcloud.Slice(name, "us-west4-a"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--languages=en,es"], "--languages=es: the languages of this run are en, de, fr, ja, zh"),
        (["--config.combined=True"], "combined=True: is one training; start the train door"),
        (["--by=tpu", "--sbatch=-p x"], "--sbatch is for --by=slurm, not --by=tpu"),
        (["--at_once=2"], "--at_once is of jobs; one program takes config.adapters_at_once"),
        (
            ["--by=tpu", f"--tpu={TPU}"],
            "--tpu: has no --share; adapters would stay on the slices, where they are not merged; "
            "add --share=HOST:/PATH (docs/launching.md: The share)",
        ),
        (
            ["--by=tpu", f"--tpu={TPU} {SHARE}", "--workdir=runs/mine"],
            "--workdir=runs/mine: is not on the share; give one below /mnt/share, such as "
            "/mnt/share/runs/mine",
        ),
        (
            ["--by=tpu", f"--tpu={TPU} --share 10.0.0.2:/vol", "--workdir=/mnt/share/runs/mine"],
            "/mnt/share: no share is mounted here, where adapters are waited for and merged; start "
            "on a machine of its network, after sudo mount -t nfs 10.0.0.2:/vol /mnt/share",
        ),
        (
            [
                *("--by=tpu", f"--tpu={TPU} {SHARE} --zone=europe", "--dry_run"),
                "--workdir=/mnt/share/runs/mine",
            ],
            "--tpu: --zone=europe: not a zone; give one such as us-west4-a",
        ),
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


def test_a_dry_run_prints_the_commands_of_slices_and_runs_none(flags, tmp_path):
    workdir = "/mnt/share/runs/mine_all"
    given = ["--by=tpu", f"--tpu={TPU} {SHARE}", "--languages=de,ja", "--dry_run"]
    out, _ = ended(start(workdir, *flags, *given, "--recipes=ties_knots@0.5"), 0)
    assert len(out) == 3
    assert out[0].startswith(
        f"{sys.executable} -m launch.tpu_pod run --name=mine-all-de {TPU} {SHARE} "
        "-- python -m langmerge_jax.train --config=tests/tiny.py"
    )
    assert out[0].endswith(f"--workdir={workdir} --languages=de --distributed=auto")
    assert "-m langmerge_jax.merge" in out[-1]
    assert "--config.merge.recipes=('\"'\"'ties_knots@0.5'\"'\"',)" in out[-1]
