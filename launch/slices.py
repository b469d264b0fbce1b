"""One slice a language: what slices are called, and what is refused before any of them costs."""

import os
import pathlib
import re
import shlex
import subprocess
from collections.abc import Sequence

from langmerge_jax.errors import InputError
from launch.remote import MOUNT


def slice_name(run: str, language: str) -> str:
    """Returns a name that Google Cloud takes: a letter first, no underscores, 63 signs at most."""
    before, behind = (re.sub("[^a-z0-9]+", "-", x.lower()).strip("-") for x in (run, language))
    if not re.match("[a-z]", before):
        before = f"run-{before}".rstrip("-")
    return f"{before[: 62 - len(behind)].rstrip('-')}-{behind}"


def check(
    workdir: pathlib.Path, options: str, commands: Sequence[Sequence[str]], *, dry_run: bool
) -> None:
    """Refuses slices whose adapters would not be found here, and what launch.tpu_pod refuses.

    Args:
      workdir: of all of them, and of the merge.
      options: of launch.tpu_pod.
      commands: of launch.tpu_pod, one a language.
      dry_run: whether nothing is to run, and so nothing need be reached.

    Raises:
      InputError: if one of them could not end with its adapter in the workdir.
    """
    share = option(options, "share")
    if not share:
        raise InputError(
            "--tpu: has no --share; adapters would stay on the slices, where they are not merged; "
            "add --share=HOST:/PATH (docs/launching.md: The share)"
        )
    if not workdir.is_relative_to(MOUNT) or ".." in workdir.parts:
        raise InputError(
            f"--workdir={workdir}: is not on the share; give one below {MOUNT}, such as "
            f"{MOUNT}/runs/{workdir.name}"
        )
    if not dry_run and not os.path.ismount(os.path.realpath(MOUNT)):
        raise InputError(
            f"{MOUNT}: no share is mounted here, where adapters are waited for and merged; start "
            f"on a machine of its network, after sudo mount -t nfs {share} {MOUNT}"
        )
    for command in commands:
        behind = command.index("run") + 1
        dry = [*command[:behind], "--dry_run", *command[behind:]]
        done = subprocess.run(dry, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"--tpu: {done.stderr.splitlines()[-1].removeprefix('error: ')}")


def option(options: str, flag: str) -> str:
    """Returns what options say for a flag, the last time; "" if they do not."""
    said = re.findall(rf"(?<!\S)--?{flag}[= ](\S+)", " ".join(shlex.split(options)))
    return said[-1] if said else ""


def status_command(options: str) -> str:
    """Returns the command that lists what was started in the zone of these options, and lives."""
    place = [f"--{x}={option(options, x)}" for x in ("zone", "project") if option(options, x)]
    return shlex.join(["python", "-m", "launch.tpu_pod", "status", *place])


def left_running(log: pathlib.Path) -> str:
    """Returns the line by which launch.tpu_pod told what it left, which costs; "" for nothing."""
    text = log.read_text(encoding="utf-8", errors="replace")
    told = re.findall(r"^(?:perhaps still|still|takes up) .*launch\.tpu_pod.*", text, re.MULTILINE)
    return told[-1] if told else ""
