"""Every command of docs/launching.md is run: in the cloud's place, dry, or up to its flags."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from configs import sentiment_en
from tests.doors import ROOT
from tests.launch.conftest import QUICK
from tests.launch.test_dry_run import refused_by_gcloud
from tests.launch.test_slurm import Cluster
from tests.pages import accepts, blocks, commands

PAGE = "docs/launching.md"
BLOCKS = [block.text for block in blocks(PAGE)]
COMMANDS = commands(BLOCKS)


def of(*start: str) -> list[list[str]]:
    """The commands that begin so."""
    found = [words for words in map(shlex.split, COMMANDS) if tuple(words[: len(start)]) == start]
    assert found, start
    return found


def test_all_commands_are_of_a_kind_that_is_run_below():
    kinds = {"gcloud", "python", "sbatch", "kubectl", "docker", "test", "eval", "ssh-add"}
    assert {line.split()[0] for line in COMMANDS} == kinds


def test_the_launcher_takes_its_commands_in_their_order(cloud):
    asked = []
    for words in of("python", "-m", "launch.tpu_pod"):
        action, flags = words[3], words[4:]
        if action == "run":
            behind = flags.index("--")
            accepts(flags[behind + 1 :])
            flags = ["--dry_run", *flags]
        else:
            flags = [*flags, *QUICK, f"--folder={cloud.folder}"]
        if action == "setup" and asked:
            # The run before was dry, and would have deleted its slice.
            run_launcher(cloud, "delete", "--name=mine", "--zone=us-west4-a")
        asked.append(action)
        run_launcher(cloud, action, *flags)
    assert " ".join(asked) == "setup run logs setup delete status delete run delete"
    assert cloud.alive() == {}


def run_launcher(cloud, action: str, *flags: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "launch.tpu_pod", action, *flags],
        cwd=ROOT,
        env=cloud.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr


def given(words: list[str]) -> dict[str, str]:
    """The flags of a command."""
    return dict(word.partition("=")[::2] for word in words if word.startswith("--"))


def downloads() -> list[list[str]]:
    """The commands by which a machine brings something to the share."""
    return [shlex.split(given(words)["--command"]) for words in of("gcloud") if "ssh" in words]


def test_what_a_run_reads_was_brought_to_its_share():
    pod = of("python", "-m", "launch.tpu_pod")
    setup, run, fetch = [words for words in pod if "--share=10.0.0.2:/vol" in words]
    behind = run.index("--")
    assert given(setup) == given(run[:behind])
    train = given(run[behind:])
    brought = {words[-1]: words[2] for words in downloads() if words[-2] == "--local-dir"}
    assert brought[train["--config.base"]] == "Qwen/Qwen3-8B"
    rows = train["--config.data.path"].removeprefix("hf:")
    assert train["--config"] == "configs/sentiment_en.py"
    assert f"hf:{brought[rows]}" == sentiment_en.get_config().data.path
    (scp,) = [words for words in of("gcloud") if any(x.startswith("fetch:") for x in words)]
    assert f"fetch:{train['--workdir']}/adapters" in scp
    assert fetch[3] == "setup"


def test_hf_takes_what_machines_download(tmp_path):
    hf = pathlib.Path(sys.executable).with_name("hf")
    for words in downloads():
        assert words[0] == ".langmerge_jax/venv/bin/hf"
        inside = [word.replace("/mnt/share", str(tmp_path)) for word in words[1:]]
        result = subprocess.run(
            [hf, *inside],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
        )
        # What it does not know it refuses with status 2.
        assert result.returncode == 1, result.stderr
        assert "offline mode is enabled" in result.stderr


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="the Google Cloud CLI is not installed")
def test_gcloud_takes_its_commands(tmp_path):
    # Those that differ in values alone are one to what reads them.
    asked = {(*words[:5], *given(words)): words for words in of("gcloud")}
    for words in asked.values():
        if words[1:3] == ["config", "set"]:
            continue  # It is done by whoever one is.
        assert "You do not currently have an active account" in refused_by_gcloud(words, tmp_path)


def test_the_key_is_made_and_known_to_an_agent(tmp_path):
    for tool in ("ssh-keygen", "ssh-agent", "ssh-add"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    (script,) = [block for block in BLOCKS if "ssh-add" in block]
    (tmp_path / ".ssh").mkdir(mode=0o700)
    # Asked for a passphrase, as nobody is there, it takes an empty one; and the agent ends.
    script = script.replace("~", str(tmp_path)).replace("-t rsa", "-q -N '' -t rsa")
    result = subprocess.run(
        ["bash", "-euc", f"{script}ssh-add -l; kill $SSH_AGENT_PID"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "(RSA)" in result.stdout


def test_slurm_takes_its_commands(tmp_path, monkeypatch):
    cluster = Cluster(tmp_path)
    monkeypatch.setenv("SRUN_ONLY_NOTES", "1")
    (words,) = of("sbatch")
    result = cluster.sbatch(*words[1:])
    assert result.returncode == 0, result.stderr
    (srun,) = cluster.calls("srun")
    command = srun[srun.index("python") :]
    assert command == words[words.index("python") :]
    accepts(command)


def test_what_other_commands_name_is_there():
    (build,), (run,), (apply,) = of("docker", "build"), of("docker", "run"), of("kubectl")
    for words in (build, apply):
        assert (ROOT / words[words.index("-f") + 1]).is_file()
    assert build[build.index("-t") + 1] in run
    accepts(run[run.index("python") :])


def test_what_the_page_says_lies_in_launch():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    for name in re.findall(r"^\| `(?:python -m )?(launch[/.]\w+(?:\.\w+)?)`", text, re.MULTILINE):
        path = ROOT / (name if "/" in name else name.replace(".", "/") + ".py")
        assert path.exists(), name
