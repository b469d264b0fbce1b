"""What goes to the machines of a slice: the checkout, and what worker.sh is asked there."""

import dataclasses
import pathlib
import re
import shlex
import subprocess
import tarfile
from collections.abc import Sequence

from langmerge_jax.errors import InputError

MOUNT = pathlib.PurePosixPath("/mnt/share")
ARCHIVE = "langmerge_jax.tar.gz"

_CHECKOUT = "langmerge_jax"
_WORKER = f"{_CHECKOUT}/launch/worker.sh"
_LARGEST = 100_000_000


@dataclasses.dataclass(frozen=True)
class Report:
    """How the command stands on one machine: none, running, lost, or ended with a status."""

    state: str
    status: int | None
    command: str
    size: int
    log: bytes


def worker_command(*arguments: str) -> str:
    """What worker.sh is asked; nothing where there is no checkout yet."""
    return f"test ! -e {_WORKER} || bash {_WORKER} {shlex.join(arguments)}"


def unpack_command() -> str:
    return f"mkdir -p {_CHECKOUT} && tar -xzf {ARCHIVE} -C {_CHECKOUT}"


def setup_command(share: str) -> str:
    return shlex.join(["bash", _WORKER, "setup", *([share] if share else [])])


def start_command(name: str, share: str, command: Sequence[str]) -> str:
    folder = f"{MOUNT}/logs/{name}" if share else ".langmerge_jax/logs"
    return shlex.join(["bash", _WORKER, "start", folder, *command])


def pack(archive: pathlib.Path) -> None:
    """Packs the checkout, all that git does not ignore, for the machines.

    Raises:
      InputError: if it is none, or too large to be brought to every machine.
    """
    root = pathlib.Path(__file__).resolve().parents[1]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        raise InputError(f"{root}: not a git checkout; clone the repository and launch from there")
    names = sorted(set(filter(None, listed.stdout.decode().split("\0"))))
    paths = [name for name in names if (root / name).is_file()]
    size = sum((root / name).stat().st_size for name in paths)
    if size > _LARGEST:
        largest = max(paths, key=lambda name: (root / name).stat().st_size)
        raise InputError(
            f"{root}: {size / 1e6:.0f} MB that git does not ignore, the largest {largest}; put "
            "data and models on the share and into .gitignore"
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=1, format=tarfile.GNU_FORMAT) as tar:
        for name in paths:
            tar.add(root / name, arcname=name)


def read(said: bytes, offset: int) -> Report | None:
    """Reads what `worker.sh poll` says from a byte on; None if it has not spoken."""
    found = re.search(rb"\n@@ (\w+) ?(\d*) @@ (\d+) @@ (.*)\n", said)
    if found is None:
        return None
    state, status, size, command = (part.decode() for part in found.groups())
    log = said[found.end() :][: max(0, int(size) - offset)]
    return Report(state, int(status) if status else None, command, int(size), log)
