"""The gcloud commands of a run on Cloud TPU, word for word, and how one is run."""

import contextlib
import dataclasses
import pathlib
import re
import subprocess
import time
from collections.abc import Sequence

from langmerge_jax.errors import InputError

# What is started here bears it, so that it can be told from what else lives in the project.
LABEL = ("started-by", "langmerge-jax")

# Asked again, they would be answered the same.
_FINAL = re.compile(
    "active account|gcloud auth|PERMISSION_DENIED|UNAUTHENTICATED|SERVICE_DISABLED|"
    "INVALID_ARGUMENT|unrecognized arguments|[Qq]uota"
)
# Of questions and not of machines: in a minute they are answered.
_RATE = re.compile(r"per[ _-]?(second|minute)|rate.?limit", re.IGNORECASE)

# A gcloud that waits for an answer takes 100 MB.
_AT_ONCE = 16
_TPUS = ("gcloud", "compute", "tpus")
# A machine that is gone answers nothing; without these, each of gcloud's ten tries takes minutes.
_PATIENCE = ("-oConnectTimeout=10", "-oServerAliveInterval=15")
_RUNTIMES = {
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
    "v4": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v2": "tpu-ubuntu2204-base",
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice as it is asked for: one queued resource with one node of the same name.

    Attributes:
      name: what the queued resource and its node are called.
      zone: where.
      project: whose; gcloud's own setting if empty.
      accelerator: such as v5litepod-16.
      runtime: the machines' image; that of the accelerator if empty.
      spot: whether it may be taken away at any time, for less money.
      further: flags that creating takes beside these, as they are.
    """

    name: str
    zone: str
    project: str = ""
    accelerator: str = ""
    runtime: str = ""
    spot: bool = False
    further: tuple[str, ...] = ()

    def several_hosts(self) -> bool:
        """Returns whether it has more than one machine."""
        # In cores up to v5p, in chips of v5e and v6e: one machine has up to 8 of either.
        return int(self.accelerator.rpartition("-")[2]) > 8

    def labels(self) -> dict[str, str]:
        """Returns what it bears, so that it can be told what it is."""
        return dict([LABEL, ("spot", str(self.spot).lower())])

    def place(self) -> list[str]:
        """Returns the flags that say where it is."""
        return [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]


def check(slice_: Slice) -> None:
    """Refuses what gcloud would refuse later, or what it would take and not mean.

    Raises:
      InputError: if a name, a zone or an accelerator cannot be one.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", slice_.name):
        raise InputError(
            f"--name={slice_.name}: not a name of Google Cloud; take lower case letters, digits "
            "and hyphens, the first a letter"
        )
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", slice_.zone):
        raise InputError(f"--zone={slice_.zone}: not a zone; give one such as us-west4-a")
    if slice_.accelerator and not (
        re.fullmatch(r"[a-z0-9]+-[1-9]\d*", slice_.accelerator)
        and (slice_.runtime or slice_.accelerator.partition("-")[0] in _RUNTIMES)
    ):
        raise InputError(
            f"--accelerator={slice_.accelerator}: not one of {', '.join(_RUNTIMES)} with a size, "
            "such as v5litepod-16; give --runtime_version with a newer one"
        )


def create(slice_: Slice) -> list[str]:
    runtime = slice_.runtime or _RUNTIMES[slice_.accelerator.partition("-")[0]]
    return [
        *(*_TPUS, "queued-resources", "create", slice_.name, f"--node-id={slice_.name}"),
        *(f"--accelerator-type={slice_.accelerator}", f"--runtime-version={runtime}"),
        *(["--spot"] if slice_.spot else []),
        "--labels=" + ",".join(f"{key}={value}" for key, value in slice_.labels().items()),
        *(*slice_.further, *slice_.place(), "--quiet"),
    ]


def describe(slice_: Slice) -> list[str]:
    return [
        *(*_TPUS, "queued-resources", "describe", slice_.name),
        *(*slice_.place(), "--format=json"),
    ]


def describe_node(slice_: Slice) -> list[str]:
    return [*_TPUS, "tpu-vm", "describe", slice_.name, *slice_.place(), "--format=json"]


def delete(slice_: Slice) -> list[str]:
    """The queued resource with its node."""
    return [
        *(*_TPUS, "queued-resources", "delete", slice_.name),
        *("--force", *slice_.place(), "--quiet"),
    ]


def list_all(slice_: Slice, kind: str) -> list[str]:
    """Everything in the zone; `kind` is queued-resources or tpu-vm."""
    return [*_TPUS, kind, "list", *slice_.place(), "--format=json"]


def copy(slice_: Slice, file: pathlib.Path) -> list[str]:
    """A file into the home directory of every machine."""
    return [
        *(*_TPUS, "tpu-vm", "scp", str(file), f"{slice_.name}:", "--worker=all"),
        *(f"--scp-flag={_PATIENCE[0]}", *slice_.place(), "--quiet"),
    ]


def ssh(slice_: Slice, command: str, number: int) -> list[str]:
    """A command on the machine of that number; all that it says goes to the standard output.

    On all of them at once gcloud runs it too, but mixes what they say: SDK 528 takes a directory
    to keep that apart and fails to write there.
    """
    return [
        *(*_TPUS, "tpu-vm", "ssh", slice_.name, f"--worker={number}"),
        f"--command=exec 2>&1; {command}",
        *(*(f"--ssh-flag={flag}" for flag in _PATIENCE), *slice_.place(), "--quiet"),
    ]


@dataclasses.dataclass(frozen=True)
class Answer:
    """How a gcloud command ended.

    Attributes:
      status: its exit status; over ssh that of the remote command, 255 where ssh itself failed.
      output: what it wrote to its standard output.
      error: what it wrote to its standard error; over ssh nothing that the remote command said.
    """

    status: int
    output: bytes
    error: str

    def complaint(self) -> str:
        """Returns the one line of it that says what went wrong."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("ERROR:")]
        # Of an API error, the line behind it says which.
        line = " ".join((said or lines or [f"status {self.status}"])[-1].split())
        # Where Google Cloud itself failed, gcloud shows the whole reply.
        reply = re.search(r'"message": "(.+?)".*"status": "(\w+)"', line)
        return f"{reply[2]}: {reply[1]}" if reply else line

    def last_words(self) -> str:
        """Returns the last line that a remote command said."""
        lines = self.output.decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else self.complaint()

    def failed_there(self) -> bool:
        """Returns whether it is the remote command that failed, and not the way to it."""
        return self.status not in (0, 255) and "ERROR:" not in self.error

    def is_final(self) -> bool:
        """Returns whether asking again would be answered the same."""
        return bool(_FINAL.search(self.error)) and not _RATE.search(self.error)


def run(command: Sequence[str], timeout: float) -> Answer:
    """Runs a command to its end; see run_each."""
    return run_each([command], timeout)[0]


def run_each(commands: Sequence[Sequence[str]], timeout: float) -> list[Answer]:
    """Runs commands to their ends, several side by side.

    One that takes longer than `timeout` seconds is ended, and has status 255.

    Raises:
      InputError: if there is no gcloud.
    """
    answers = []
    for first in range(0, len(commands), _AT_ONCE):
        with contextlib.ExitStack() as left:
            running = [_begin(command, left) for command in commands[first : first + _AT_ONCE]]
            end = time.monotonic() + timeout
            for process in running:
                try:
                    output, error = process.communicate(timeout=max(0, end - time.monotonic()))
                    answer = Answer(process.returncode, output, error.decode(errors="replace"))
                except subprocess.TimeoutExpired:
                    answer = Answer(255, b"", f"ERROR: no answer in {timeout:.0f} s")
                answers.append(answer)
    return answers


def _begin(command: Sequence[str], left: contextlib.ExitStack) -> subprocess.Popen:
    """Starts a command that does not outlive `left`."""
    try:
        process = subprocess.Popen(
            command,
            # ssh would read what is typed here.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError:
        raise InputError(
            "gcloud: not found; install the Google Cloud CLI, or use --dry_run"
        ) from None
    left.enter_context(process)
    left.callback(process.kill)
    return process
