"""The commands of a dry run are those that are known by heart, and that gcloud takes."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.doors import ROOT

GOLDEN = pathlib.Path(__file__).with_name("golden")
SLICE = "--name=mine --zone=us-west4-a"
TRAIN = (
    "python -m langmerge_jax.train --config=configs/sentiment_en.py "
    "--workdir=/mnt/share/runs/mine --distributed=auto"
)
LAUNCHES = {
    "run": f"run {SLICE} --accelerator=v5litepod-16 --spot --share=10.0.0.2:/vol -- {TRAIN}",
    "run_one_machine": f"run {SLICE} --accelerator=v6e-8 --project=p --poll_seconds=5 -- sh 'a b'",
    "create": f"create {SLICE} --accelerator=v5p-16 --create_flag=--reserved",
    "setup": f"setup {SLICE} --accelerator=v4-8 --runtime_version=tpu-ubuntu2204-base",
    "logs": f"logs {SLICE}",
    "status": "status --zone=us-west4-a --project=p",
    "delete": f"delete {SLICE} --project=p",
}


def dry_run(name: str) -> str:
    command = [sys.executable, "-m", "launch.tpu_pod", "--dry_run", *shlex.split(LAUNCHES[name])]
    # Nothing may be run, so nothing is there that could be.
    environment = {**os.environ, "PATH": "/nonexistent"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_dry_run_says_what_it_said(name):
    assert dry_run(name) == (GOLDEN / f"{name}.txt").read_text()


def test_the_launcher_needs_no_jax():
    code = "import sys, launch.tpu_pod; sys.exit(bool({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def refused_by_gcloud(words: list[str], folder: pathlib.Path) -> str:
    """What gcloud says to a command while it has no account and can reach nobody."""
    environment = {name: value for name, value in os.environ.items() if "CLOUDSDK" not in name}
    environment |= {
        "HOME": str(folder),
        "CLOUDSDK_CONFIG": str(folder),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_PROJECT": "nobodys",
        "CLOUDSDK_PROXY_TYPE": "http",
        "CLOUDSDK_PROXY_ADDRESS": "127.0.0.1",
        "CLOUDSDK_PROXY_PORT": "9",
    }
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode, "gcloud had an account"
    return done.stderr


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="the Google Cloud CLI is not installed")
def test_gcloud_knows_every_command_and_flag(tmp_path):
    asked = {}
    for name in LAUNCHES:
        for words in map(shlex.split, (GOLDEN / f"{name}.txt").read_text().splitlines()):
            if words[0] == "gcloud":
                asked[words[3], words[4]] = max(asked.get((words[3], words[4]), []), words, key=len)
    assert len(asked) == 7
    for words in asked.values():
        assert "You do not currently have an active account" in refused_by_gcloud(words, tmp_path)
    # What it does not know it says before it asks who one is.
    unknown = refused_by_gcloud([*next(iter(asked.values())), "--never-heard-of"], tmp_path)
    assert "unrecognized arguments: --never-heard-of" in unknown
