"""Runs a command on all machines of a Cloud TPU slice, from nothing to its results.

  python -m launch.tpu_pod run --name=mine --zone=us-west4-a --accelerator=v5litepod-16 \\
      --share=10.0.0.2:/share --spot -- \\
      python -m langmerge_jax.train --config=configs/mine.py --workdir=/mnt/share/runs/mine \\
      --distributed=auto

asks for the slice as a queued resource, waits for it, copies this checkout, sets up the
environment, runs the command on every machine and shows what worker 0 says. A slice that is taken
away is asked for again and the same command run, which goes on where it stood. Interrupted, the
command goes on; run again, this follows it. Further actions:

  create, setup     the parts of run before the command
  logs              brings the logs of all machines here
  status            lists everything that was started here in the zone, and lives
  delete            deletes the slice

docs/launching.md tells the whole way. Status: 0 done, 1 failure, 2 bad input, 130 interrupted, 143
preempted more often than --retries: run the same command to go on.
"""

import contextlib
import pathlib
import shlex
import sys
from collections.abc import Iterator, Sequence

from absl import flags

from langmerge_jax import cli
from langmerge_jax.errors import InputError
from langmerge_jax.files import alone_in
from launch import attempts, gcloud, living, remote
from launch.pod import Failed, Gone, Patience, Pod
from launch.remote import MOUNT

ACTIONS = ("run", "create", "setup", "logs", "status", "delete")

# Of a dry run, which does not know how many machines there will be.
_EACH = "# on every machine, here on the first:"

_NAME = flags.DEFINE_string("name", "", "What the slice is called.")
_ZONE = flags.DEFINE_string("zone", "", "Where, such as us-west4-a.")
_PROJECT = flags.DEFINE_string("project", "", "Whose; gcloud's own setting by default.")
_ACCELERATOR = flags.DEFINE_string("accelerator", "", "Of which kind and size: v5litepod-16.")
_RUNTIME = flags.DEFINE_string(
    "runtime_version", "", "The machines' image; that of the accelerator by default."
)
_SPOT = flags.DEFINE_bool("spot", False, "For less money, and taken away at any time.")
_CREATE = flags.DEFINE_multi_string(
    "create_flag",
    [],
    "A further flag of gcloud's `queued-resources create`, such as --create_flag=--reserved; may "
    "be repeated.",
)
_SHARE = flags.DEFINE_string(
    "share",
    "",
    f"NFS share, HOST:/PATH, that every machine mounts at {MOUNT}. Slices of several machines, and "
    "those on spot, need one for their results.",
)
_RETRIES = flags.DEFINE_integer(
    "retries", 20, "How often a run that was preempted is begun again.", lower_bound=0
)
_DELETE = flags.DEFINE_enum(
    "delete_after",
    None,
    ["never", "success", "always"],
    "When `run` deletes the slice at its end: never, if the command ended well, or also if it did "
    "not. success by default, never without a share, as results lie on the machine then. An "
    "interrupted run deletes nothing.",
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands, and run none.")
_FOLDER = flags.DEFINE_string(
    "folder", None, "Where what the machines say is kept; runs/launch/<name> by default."
)
_POLL = flags.DEFINE_float("poll_seconds", 30, "Between two looks at what runs.", lower_bound=0)
_SSH = flags.DEFINE_float(
    "ssh_seconds", 600, "How long machines that let nobody in, or gcloud, are tried.", lower_bound=0
)
_LOST = flags.DEFINE_float(
    "lost_seconds", 600, "After how long a machine that does not answer is lost.", lower_bound=0
)
_PEERS = flags.DEFINE_float(
    "peers_seconds",
    180,
    "How long the other machines have to end by themselves after one has failed.",
    lower_bound=0,
)


def main(arguments: Sequence[str]) -> None:
    action, *command = arguments or [""]
    if action not in ACTIONS:
        raise InputError(f"{action!r}: no action; give one of {', '.join(ACTIONS)}")
    pod = _pod(action, command)
    if _DRY_RUN.value:
        print("\n".join(commands(action, pod, command)))
        return
    try:
        _act(action, pod, command)
    except (Failed, Gone) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)


def _act(action: str, pod: Pod, command: Sequence[str]) -> None:
    if action == "status":
        print(living.table(pod))
    elif action == "delete":
        pod.delete()
        print(living.line(pod))
    elif action == "logs":
        for path in pod.fetch_logs():
            print(path)
    else:
        with _alone(pod):
            _run(action, pod, command)


@contextlib.contextmanager
def _alone(pod: Pod) -> Iterator[None]:
    """Keeps a second launcher from the same slice, as far as it works in the same folder."""
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(alone_in(pod.folder, waits=False))
        except InputError:
            raise InputError(
                f"--name={pod.slice.name}: another launcher is at it, in {pod.folder}; wait for "
                "that, or interrupt it and run this again"
            ) from None
        yield


def _run(action: str, pod: Pod, command: Sequence[str]) -> None:
    """Runs a command or what comes before one; says at any end what lives, and so costs."""
    delete = ()
    if action != "create":
        pod.pack()
    try:
        if action == "run":
            attempts.run(pod, command, _RETRIES.value)
            delete = ("success", "always")
        else:
            attempts.make(pod)
            if action == "setup":
                pod.await_active()
                pod.set_up()
    except KeyboardInterrupt:
        print("interrupted: what runs on the machines goes on", file=sys.stderr)
        sys.exit(130)
    except (Failed, Gone) as error:
        if action == "run":
            delete = ("always",)
        if isinstance(error, Gone):
            raise Failed(f"{error}; run the same command to go on", status=143) from error
        raise
    finally:
        _leave(pod, _delete_after() in delete)
    if action == "run":
        print(f"done: {_results(pod, command)}")


def _leave(pod: Pod, delete: bool) -> None:
    try:
        if delete:
            pod.delete()
        print(living.line(pod), flush=True)
    except (Failed, KeyboardInterrupt) as error:
        why = f"{error}\n" if str(error) else ""
        print(f"{why}perhaps still running: see {living.again('status', pod)}", flush=True)


def _delete_after() -> str:
    return _DELETE.value or ("success" if _SHARE.value else "never")


def _results(pod: Pod, command: Sequence[str]) -> str:
    workdir = _option(command, "workdir")
    if _SHARE.value:
        host, _, path = _SHARE.value.partition(":")
        inside = pathlib.PurePosixPath(workdir).relative_to(MOUNT)
        return f"results in {workdir}, which is {pathlib.PurePosixPath(path) / inside} on {host}"
    place = workdir if workdir.startswith("/") else f"~/langmerge_jax/{workdir or 'runs'}"
    return f"results in {place} on {pod.slice.name}, whose disk goes with it"


def commands(action: str, pod: Pod, command: Sequence[str]) -> list[str]:
    """Returns what an action runs where all goes well; lines of comments between."""
    slice_ = pod.slice

    def ssh(command: str) -> str:
        return shlex.join(gcloud.ssh(slice_, command, 0))

    if action == "status":
        return [shlex.join(gcloud.list_all(slice_, k)) for k in ("queued-resources", "tpu-vm")]
    if action == "delete":
        return [shlex.join(gcloud.delete(slice_))]
    if action == "logs":
        return [_EACH, ssh(remote.worker_command("log"))]
    lines = ["# unless it is there:", shlex.join(gcloud.create(slice_))]
    if action == "create":
        return lines
    archive = pod.folder / remote.ARCHIVE
    lines = [
        f"# all that git does not ignore is packed into {archive}",
        *lines,
        f"# every {_POLL.value:g} s until it is ACTIVE:",
        shlex.join(gcloud.describe(slice_)),
        "# then:",
        shlex.join(gcloud.copy(slice_, archive)),
        _EACH,
        ssh(remote.unpack_command()),
        ssh(remote.setup_command(pod.share)),
    ]
    if action == "setup":
        return lines
    lines += [
        ssh(remote.start_command(slice_.name, pod.share, command)),
        f"# every {_POLL.value:g} s until it has ended on every machine:",
        ssh(remote.worker_command("poll", "0")),
        f"# preempted, at most {_RETRIES.value} times: delete, and all of it again",
    ]
    if _delete_after() != "never":
        lines += ["# at the end:", shlex.join(gcloud.delete(slice_))]
    return lines


def _pod(action: str, command: Sequence[str]) -> Pod:
    """The slice that the flags name, checked for what the action needs of it."""
    needed = {"zone": _ZONE.value}
    if action != "status":
        needed["name"] = _NAME.value
    if action in ("run", "create", "setup"):
        needed["accelerator"] = _ACCELERATOR.value
    for flag, value in needed.items():
        if not value:
            raise InputError(f"--{flag} is missing; {action} needs it")
    slice_ = gcloud.Slice(
        name=_NAME.value or "any",
        zone=_ZONE.value,
        project=_PROJECT.value,
        accelerator=_ACCELERATOR.value,
        runtime=_RUNTIME.value,
        spot=_SPOT.value,
        further=tuple(_CREATE.value),
    )
    gcloud.check(slice_)
    if action == "run":
        _check_command(slice_, command)
    elif command:
        raise InputError(f"{command[0]!r}: only `run` takes a command")
    patience = Patience(_POLL.value, _SSH.value, _LOST.value, _PEERS.value)
    folder = pathlib.Path(_FOLDER.value or f"runs/launch/{slice_.name}")
    return Pod(slice_, _SHARE.value, patience, folder)


def _check_command(slice_: gcloud.Slice, command: Sequence[str]) -> None:
    """Refuses a command whose results would be lost, before anything costs."""
    if not command:
        raise InputError("no command; give it behind --, such as -- python -m langmerge_jax.train")
    workdir = _option(command, "workdir")
    if _SHARE.value:
        if ":/" not in _SHARE.value:
            raise InputError(f"--share={_SHARE.value}: not HOST:/PATH, as NFS names a share")
        path = pathlib.PurePosixPath(workdir)
        if not path.is_relative_to(MOUNT) or ".." in path.parts:
            raise InputError(
                f"--workdir={workdir}: is not on the share; give one below {MOUNT}, such as "
                f"{MOUNT}/runs/{slice_.name}"
            )
    else:
        for so, why in (
            (slice_.spot, "--spot: its disk goes with it, and results with that"),
            (slice_.several_hosts(), f"{slice_.accelerator}: its machines need one file system"),
            (_delete_after() != "never", "--delete_after: results lie on the machine"),
        ):
            if so:
                raise InputError(f"{why}; give --share (docs/launching.md: The share)")
    if (
        slice_.several_hosts()
        and "langmerge_jax.train" in command
        and not _option(command, "distributed")
    ):
        raise InputError(
            f"{slice_.accelerator}: has several machines, each of which runs the command; add "
            "--distributed=auto to it"
        )


def _option(command: Sequence[str], name: str) -> str:
    """The value of a flag of the command, written --name=value or --name value; else nothing."""
    for number, word in enumerate(command):
        flag, equals, value = word.partition("=")
        if flag.lstrip("-") == name and word.startswith("-"):
            return value if equals else (list(command[number + 1 :]) or [""])[0]
    return ""


if __name__ == "__main__":
    # An action may stand before the flags.
    flags.FLAGS.set_gnu_getopt(True)
    cli.run(main, arguments=True)
