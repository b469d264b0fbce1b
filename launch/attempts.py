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
    state, value = pod.look()
    if state != ABSENT:
        pod.recognize(value)
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
    if fresh or not _runs_already(pod, command):
        pod.set_up()
        pod.start(command)
        print(f"{pod.where()}: {shlex.join(command)}", flush=True)
    _follow(pod)


def _runs_already(pod: Pod, command: Sequence[str]) -> bool:
    """Asks machines that were there before whether the command runs on them.

    Raises:
      Gone: if one of them has not answered for too long.
      Failed: if none has, or if another command runs there, or over another share.
    """
    silence, known = _Silence(pod), {}
    # One that does not answer may run something, and beginning would end that.
    while True:
        reports = pod.poll(0)
        known |= {number: x for number, x in enumerate(reports) if x is not None}
        if len(known) == len(reports):
            break
        silence.note(reports)
        time.sleep(pod.patience.poll)
    running = [report for report in known.values() if report.state == "running"]
    for report in running:
        if report.command != " ".join(command):
            raise Failed(
                f"{pod.where()}: runs another command, {report.command}; follow it by giving that "
                "one, end it by `delete`, or take another --name",
                status=2,
            )
    # On some it may have ended, as they do not end at once.
    if not running or any(report.state in _LOST for report in known.values()):
        return False
    pod.require_share()
    print(f"{pod.where()}: the command runs already", flush=True)
    return True


class _Silence:
    """Since when each machine has not answered.

    Args:
      pod: whose machines.
    """

    def __init__(self, pod: Pod) -> None:
        self._pod, self._since = pod, {}

    def note(self, reports: Sequence[Report | None]) -> list[int]:
        """Returns the machines that did not answer now.

        Raises:
          Gone: if one of them has not for too long.
          Failed: if none has.
        """
        now = time.monotonic()
        silent = [number for number, report in enumerate(reports) if report is None]
        # Not since the last answer: this machine may have slept.
        self._since = {number: self._since.get(number, now) for number in silent}
        patience = self._pod.patience.lost
        lost = [number for number in silent if now - self._since[number] > patience]
        for_so_long = f"answered for {patience:.0f} s"
        if len(lost) == len(reports):
            # A slice that may be well is not deleted.
            raise Failed(
                f"{self._pod.where()}: no worker has {for_so_long}, though Google Cloud says that "
                "it is there; if that is the way to it, run the same command to follow, else "
                "delete it"
            )
        # While none answers it is not said that the one that began is to blame.
        if lost and len(silent) < len(reports):
            worker = f"worker {lost[0]} of {self._pod.slice.name}"
            raise Gone(f"{worker}: has not {for_so_long}", machines=True)
        return silent


def _follow(pod: Pod) -> None:
    """Shows what worker 0 says until the command has ended well on all machines.

    Raises:
      Gone, Failed: if it has not.
    """
    offset, failing, silence, ended = 0, None, _Silence(pod), {}
    while True:
        reports = pod.poll(offset)
        if reports[0] is not None:
            sys.stdout.buffer.write(reports[0].log)
            sys.stdout.buffer.flush()
            offset += len(reports[0].log)
        # What has ended stays so, whether its machine answers or not.
        ended |= {n: x for n, x in enumerate(reports) if x is not None and x.state == "ended"}
        reports = [report or ended.get(number) for number, report in enumerate(reports)]
        silent = silence.note(reports)
        answers = {number: report for number, report in enumerate(reports) if report is not None}
        if not silent and all(report.status == 0 for report in reports):
            return
        # Beside a machine that is silent others end for want of it; it may yet be lost.
        if any(_by_itself(x) or (not silent and _badly(x)) for x in answers.values()):
            failing = failing or time.monotonic()
            running = silent or any(report.state == "running" for report in answers.values())
            if not running or time.monotonic() - failing > pod.patience.peers:
                if running:
                    pod.stop()
                _judge(pod, answers)
        time.sleep(pod.patience.poll)


def _badly(report: Report) -> bool:
    """Whether the command has ended, and not well."""
    return report.state in _LOST or bool(report.status)


def _by_itself(report: Report) -> bool:
    """Whether the command failed, and not for want of something else."""
    return bool(report.status) and report.status not in (*_LEFT, _SIGKILL)


def _judge(pod: Pod, reports: dict[int, Report]) -> None:
    """Says what became of a command that has not ended well on some machines.

    Raises:
      Gone: if a machine or its process was taken away.
      Failed: if the command itself failed; with status 2 where it refused its input.
    """
    name = pod.slice.name
    for number, report in reports.items():
        if report.state in _LOST or report.status == _SIGKILL:
            raise Gone(
                f"worker {number} of {name}: its process was killed, for want of memory if the "
                "machine stays",
                machines=False,
                killed=True,
            )
    ended = {number: report.status for number, report in reports.items() if report.status}
    # Who failed by itself says why.
    failed = [number for number in ended if _by_itself(reports[number])]
    told = [number for number, status in ended.items() if status == _SIGTERM]
    if told and not failed:
        raise Gone(f"worker {told[0]} of {name}: told to end, saved and left", machines=False)
    number = (failed or list(ended))[0]
    _show_logs(pod)
    raise Failed(
        f"worker {number} of {name}: the command ended with status {ended[number]}",
        status=2 if ended[number] == 2 else 1,
    )


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
