"""A command on a slice to its end, over as many slices as that takes."""

import shlex
import sys
import time
from collections.abc import Sequence

from launch.pod import ABSENT, DEAD, Failed, Gone, Pod
from launch.remote import Report

# No process and no status: killed, or the machine began anew.
_LOST = ("lost", "none")
_SIGABRT, _SIGKILL, _SIGTERM = 134, 137, 143
# Of a process that was ended for want of a peer, or with all of them.
_LEFT = (_SIGABRT, _SIGTERM)


def run(pod: Pod, command: Sequence[str], retries: int) -> None:
    """Runs a command to its end, again after a preemption.

    Raises:
      Gone: if it was preempted more often than `retries`.
      Failed: if it, or what it needs, failed.
    """
    killed = False
    for left in range(retries, -1, -1):
        try:
            _once(pod, command)
            return
        except Gone as gone:
            if gone.killed and killed:
                raise Failed(f"{gone}, twice; see how much memory the machines have") from gone
            killed = gone.killed
            if not left:
                raise
            print(f"preempted: {gone}; {left} retries left", file=sys.stderr, flush=True)
            # What Google Cloud says of a slice follows what happened to it.
            time.sleep(pod.patience.poll)
            if gone.machines:
                pod.delete()


def make(pod: Pod) -> bool:
    """Asks for the slice unless it is there; returns whether it had to."""
    state, _ = pod.look()
    if state in DEAD:
        print(f"{pod.where()}: {state}", flush=True)
        pod.delete()
    elif state != ABSENT:
        return False
    pod.create()
    return True


def _once(pod: Pod, command: Sequence[str]) -> None:
    fresh = make(pod)
    pod.await_active()
    if not fresh:
        reports = pod.poll(0)
        if any(report is not None and report.state == "running" for report in reports):
            _same(pod, {r.command for r in reports if r is not None}, command)
        if all(report is not None and report.state == "running" for report in reports):
            print(f"{pod.where()}: the command runs already", flush=True)
            _follow(pod)
            return
    pod.set_up()
    pod.start(command)
    print(f"{pod.where()}: {shlex.join(command)}", flush=True)
    _follow(pod)


def _same(pod: Pod, running: set[str], command: Sequence[str]) -> None:
    others = running - {" ".join(command), ""}
    if others:
        raise Failed(
            f"{pod.where()}: runs another command, {others.pop()}; follow it by giving that one, "
            "end it by `delete`, or take another --name",
            status=2,
        )


def _judge(pod: Pod, reports: Sequence[Report]) -> None:
    """Says what became of a command that has ended on some machines, and not well.

    Raises:
      Gone: if a machine or its process was taken away.
      Failed: if the command itself failed; with status 2 where it refused its input.
    """
    name = pod.slice.name
    for number, report in enumerate(reports):
        if report.state in _LOST or report.status == _SIGKILL:
            raise Gone(
                f"worker {number} of {name}: its process was killed, for want of memory if the "
                "machine stays",
                machines=False,
                killed=True,
            )
    statuses = [report.status for report in reports]
    # Who failed by itself says why.
    failed = [k for k, status in enumerate(statuses) if status and status not in _LEFT]
    if not failed and _SIGTERM in statuses:
        number = statuses.index(_SIGTERM)
        raise Gone(f"worker {number} of {name}: told to end, saved and left", machines=False)
    number = failed[0] if failed else statuses.index(_SIGABRT)
    status = statuses[number]
    _show_logs(pod)
    raise Failed(
        f"worker {number} of {name}: the command ended with status {status}",
        status=2 if status == 2 else 1,
    )


def _follow(pod: Pod) -> None:
    """Shows what worker 0 says until the command has ended well on all machines.

    Raises:
      Gone, Failed: if it has not.
    """
    offset, since, failing = 0, None, None
    while True:
        reports = pod.poll(offset)
        silent = [number for number, report in enumerate(reports) if report is None]
        if reports[0] is not None:
            sys.stdout.buffer.write(reports[0].log)
            sys.stdout.buffer.flush()
            offset = reports[0].size
        now = time.monotonic()
        if silent:
            # Not since the last answer: this machine may have slept.
            since = since or now
            if now - since > pod.patience.lost:
                _give_up(pod, silent, len(reports))
        else:
            since = None
            if all(report.status == 0 for report in reports):
                return
            if any(report.state in _LOST or report.status for report in reports):
                failing = failing or now
                running = any(report.state == "running" for report in reports)
                if not running or now - failing > pod.patience.peers:
                    if running:
                        pod.stop()
                    _judge(pod, reports)
        time.sleep(pod.patience.poll)


def _give_up(pod: Pod, silent: Sequence[int], count: int) -> None:
    for_so_long = f"answered for {pod.patience.lost:.0f} s"
    if len(silent) == count:
        # A slice that may be well is not deleted.
        raise Failed(
            f"{pod.where()}: no worker has {for_so_long}, though Google Cloud says that it is "
            "there; if that is the way to it, run the same command to follow, else delete it"
        )
    raise Gone(f"worker {silent[0]} of {pod.slice.name}: has not {for_so_long}", machines=True)


def _show_logs(pod: Pod) -> None:
    """Brings the logs here, and shows the end of those that nobody saw."""
    try:
        paths = pod.fetch_logs()
    except Failed:
        return  # Why it failed says more than why there are no logs.
    for path in paths:
        if path.stem != "0":
            lines = path.read_text(errors="replace").splitlines()[-20:]
            print("\n".join([f"worker {path.stem}, {path}:", *lines]), file=sys.stderr)
