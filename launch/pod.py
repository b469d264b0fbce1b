"""A slice from asking for it to a command that runs on all its machines."""

import dataclasses
import json
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from launch import gcloud, remote
from launch.gcloud import Answer, Slice
from launch.remote import Report

ABSENT = "ABSENT"
# Of a queued resource whose machines are gone, or never come.
DEAD = ("SUSPENDING", "SUSPENDED", "FAILED")

# Setting up takes minutes, and so does gcloud to give a machine up.
_TIMEOUT = 1800
# How often setting up is tried: a server of packages stutters, a system updates itself.
_SET_UPS = 3
# With which worker.sh refuses what it is given.
_REFUSED = 78


class Failed(Exception):
    """What ends a run, in one line; `status` is that of the launcher."""

    def __init__(self, line: str, status: int = 1) -> None:
        super().__init__(line)
        self.status = status


class Gone(Exception):
    """A machine, or the command on it, was taken away: what a preemption is, and is begun again.

    `machines` says whether the machines themselves are gone, `killed` whether something killed the
    command on machines that stay.
    """

    status = 143

    def __init__(self, line: str, *, machines: bool, killed: bool = False) -> None:
        super().__init__(line)
        self.machines, self.killed = machines, killed


@dataclasses.dataclass(frozen=True)
class Patience:
    """For how many seconds what is waited for.

    Attributes:
      poll: between two looks at what runs.
      ssh: until machines that do not let anybody in are given up, or Google Cloud itself.
      lost: until a machine that no longer answers is given up.
      peers: until the others are stopped where one has failed.
    """

    poll: float
    ssh: float
    lost: float
    peers: float

    def tries(self) -> Iterator[None]:
        """Yields at once, then after longer and longer, until `ssh` has passed."""
        end, wait = time.monotonic() + self.ssh, self.poll / 4
        yield
        while time.monotonic() < end:
            time.sleep(wait)
            wait = min(2 * wait, 2 * self.poll)
            yield


class Pod:
    """A slice, and what is done with it.

    Args:
      slice_: what is asked for.
      share: NFS share that all machines mount, HOST:/PATH; none if empty.
      patience: how long is waited.
      folder: where what the machines say is kept here.
    """

    def __init__(self, slice_: Slice, share: str, patience: Patience, folder: pathlib.Path) -> None:
        self.slice, self.share, self.patience, self.folder = slice_, share, patience, folder
        self._machines = 0
        self._archive = folder / remote.ARCHIVE

    def where(self) -> str:
        return f"{self.slice.name} ({self.slice.zone})"

    def look(self) -> tuple[str, dict]:
        """Returns the state of the queued resource, and all that Google Cloud says of it."""
        answer = self._ask(gcloud.describe(self.slice))
        if answer.status:
            return ABSENT, {}
        value = json.loads(answer.output)
        return value.get("state", {}).get("state", "STATE_UNSPECIFIED"), value

    def recognize(self, value: dict) -> None:
        """Refuses a slice of this name that is another one.

        Raises:
          Failed: if it was not started here, or is not what is asked for.
        """
        key, ours = gcloud.LABEL
        found = labels(value)
        if found.get(key) != ours:
            raise Failed(
                f"{self.where()}: is not of this launcher, its label {key} is "
                f"{found.get(key, 'missing')}, not {ours}; take another --name",
                status=2,
            )
        # Whoever deletes it has named it, and need not say what it is.
        if not self.slice.accelerator:
            return
        accelerator = node(value).get("acceleratorType", "").rpartition("/")[2]
        for flag, there, asked in (
            ("accelerator", accelerator, self.slice.accelerator),
            ("spot", found.get("spot"), self.slice.labels()["spot"]),
        ):
            if there and there != asked:
                raise Failed(
                    f"{self.where()}: is there with --{flag}={there}, not --{flag}={asked}; say "
                    "what it is, take another --name, or end it by `delete`",
                    status=2,
                )

    def create(self) -> None:
        """Asks for the slice.

        Raises:
          Failed: if it is refused, or was not taken down for too long.
        """
        for _ in self.patience.tries():
            answer = gcloud.run(gcloud.create(self.slice), _TIMEOUT)
            # One that was called a failure may have been taken down.
            state, value = (ABSENT, {}) if answer.status == 0 else self.look()
            if state != ABSENT:
                self.recognize(value)
            if answer.status == 0 or state != ABSENT:
                self._machines = 0
                print(f"{self.where()}: asked for, {self.slice.accelerator}", flush=True)
                return
            if answer.is_final():
                break
        raise Failed(self._refused(answer.complaint()))

    def await_active(self) -> None:
        """Waits until the machines are there, for as long as Google Cloud has no room."""
        before = None
        while (found := self.look())[0] != "ACTIVE":
            state, value = found
            if state != before:
                wait = "; there is no room yet, it waits in the queue"
                said = wait if state == "WAITING_FOR_RESOURCES" else ""
                print(f"{self.where()}: {state}{said}", flush=True)
                before = state
            if state == "FAILED":
                error = value["state"].get("failedData", {}).get("error", {})
                line = " ".join(error.get("message", "Google Cloud does not say why").split())
                # No room in time, or a fault of theirs; else asking again would not help.
                if error.get("code") in (8, 13, 14) and "uota" not in line:
                    raise Gone(f"{self.where()}: could not be had ({line})", machines=True)
                raise Failed(self._refused(line))
            if state in DEAD:
                raise Gone(f"{self.where()}: {state} before it was there", machines=True)
            self._not_deleted(state)
            time.sleep(self.patience.poll)
        print(f"{self.where()}: ACTIVE", flush=True)

    def require(self) -> int:
        """Returns the number of machines.

        Raises:
          Gone: if they were taken away.
        """
        state, _ = self.look()
        self._not_deleted(state)
        if state != "ACTIVE":
            raise Gone(f"{self.where()}: preempted, it is {state}", machines=True)
        answer = self._ask(gcloud.describe_node(self.slice))
        node = json.loads(answer.output) if answer.status == 0 else {"state": ABSENT}
        if node["state"] in (ABSENT, "PREEMPTED", "TERMINATED", "STOPPED", "DELETING"):
            # Somebody may have deleted it between the two questions.
            self._not_deleted(self.look()[0])
            raise Gone(f"{self.where()}: preempted, its node is {node['state']}", machines=True)
        self._machines = len(node.get("networkEndpoints", ())) or 1
        return self._machines

    def pack(self) -> None:
        """Packs the checkout as it is now; over hours and preemptions that is what runs."""
        remote.pack(self._archive)

    def set_up(self) -> None:
        """Brings what was packed to all machines and makes the environment there."""
        copy = gcloud.copy(self.slice, self._archive)
        self._remote("copying the checkout", lambda to: [gcloud.run(copy, _TIMEOUT)] * len(to))
        self._remote("unpacking it", lambda to: self._say(remote.unpack_command(), to))
        set_up = remote.setup_command(self.share)
        self._remote("setting up", lambda to: self._say(set_up, to), failures=_SET_UPS)

    def start(self, command: Sequence[str]) -> None:
        start = remote.start_command(self.slice.name, self.share, command)
        self._remote("starting", lambda to: self._say(start, to))

    def require_share(self) -> None:
        """Refuses machines that have mounted another share.

        Raises:
          Failed: if they have.
        """
        if self.share:
            mounted = remote.worker_command("mounted", self.share)
            self._remote("asking for the share", lambda to: self._say(mounted, to))

    def stop(self) -> None:
        """Ends the command on all machines that can be reached."""
        for number, answer in enumerate(self._say(remote.worker_command("stop"))):
            if answer.status:
                line = f"worker {number} of {self.slice.name}: not stopped ({answer.last_words()})"
                print(line, file=sys.stderr)

    def poll(self, offset: int) -> list[Report | None]:
        """Returns how the command stands on each machine; None for one that does not answer."""
        answers = self._say(remote.worker_command("poll", str(offset)))
        if any(answer.status for answer in answers):
            self.require()
        none = Report("none", None, "", 0, b"")
        return [
            remote.read(answer.output, offset) or (None if answer.status else none)
            for answer in answers
        ]

    def fetch_logs(self) -> list[pathlib.Path]:
        """Brings the log of the last command here from all machines that answer.

        Raises:
          Failed: if there are no machines, or none of them answers.
        """
        if not self._machines and (state := self.look()[0]) != "ACTIVE":
            raise Failed(f"{self.where()}: no logs, it is {state}")
        answers = self._say(remote.worker_command("log"))
        folder = self.folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.log"):
            old.unlink()
        found = []
        for number, answer in enumerate(answers):
            if answer.output:
                found.append(folder / f"{number}.log")
                found[-1].write_bytes(answer.output)
        if not found and any(answer.status for answer in answers):
            raise Failed(f"{self.where()}: no logs ({answers[0].complaint()})")
        return found

    def list_all(self, kind: str) -> list[dict]:
        """Returns all that lives in the zone; `kind` is queued-resources or tpu-vm."""
        answer = self._ask(gcloud.list_all(self.slice, kind))
        if answer.status:
            raise Failed(f"--zone={self.slice.zone}: {answer.complaint()}", status=2)
        return json.loads(answer.output)

    def delete(self) -> None:
        """Deletes the queued resource and its machines, if there are any.

        Raises:
          Failed: if it is another one, or Google Cloud does not.
        """
        for _ in self.patience.tries():
            state, value = self.look()
            if state == ABSENT:
                return
            self.recognize(value)
            answer = gcloud.run(gcloud.delete(self.slice), _TIMEOUT)
            if answer.status == 0:
                print(f"{self.where()}: deleted", flush=True)
                return
            if answer.is_final():
                break
        raise Failed(f"{self.where()}: could not be deleted ({answer.complaint()})")

    def _not_deleted(self, state: str) -> None:
        # Whoever deleted it wants no new one.
        if state in (ABSENT, "DELETING"):
            raise Failed(f"{self.where()}: was deleted meanwhile; run the same command to go on")

    def _ask(self, command: Sequence[str]) -> Answer:
        """Asks Google Cloud; a status other than 0 says that there is no such thing."""
        for _ in self.patience.tries():
            answer = gcloud.run(command, _TIMEOUT)
            if answer.status == 0 or "NOT_FOUND" in answer.error:
                return answer
            if "Location " in answer.error and "is not found" in answer.error:
                raise Failed(f"--zone={self.slice.zone}: {answer.complaint()}", status=2)
            if answer.is_final():
                break
        raise Failed(
            f"{self.where()}: gcloud does not answer ({answer.complaint()}); what runs goes on"
        )

    def _say(self, command: str, numbers: Sequence[int] = ()) -> list[Answer]:
        """Has a command run on machines, on all of them by default."""
        numbers = numbers or range(self._machines or self.require())
        commands = [gcloud.ssh(self.slice, command, number) for number in numbers]
        return gcloud.run_each(commands, _TIMEOUT)

    def _remote(
        self, what: str, act: Callable[[Sequence[int]], list[Answer]], failures: int = 1
    ) -> None:
        """Has something done on all machines, again on those that do not let anybody in.

        Args:
          what: is done.
          act: does it on the machines of these numbers.
          failures: with so many of them it has failed.

        Raises:
          Gone: if they were taken away meanwhile.
          Failed: if it failed there, or they let nobody in for too long.
        """
        numbers = range(self._machines or self.require())
        for _ in self.patience.tries():
            answers = {k: x for k, x in zip(numbers, act(numbers), strict=True) if x.status}
            if not answers:
                return
            numbers, answer, line = list(answers), next(iter(answers.values())), ""
            if "SSH agent" in answer.error and "ssh-add" in answer.error:
                break
            self.require()
            if line := self._failed_there(what, answers):
                failures -= 1
                refused = any(x.status == _REFUSED for x in answers.values())
                if refused or not failures:
                    break
                print(f"{line}; tried again", file=sys.stderr, flush=True)
        if line:
            raise Failed(line, status=2 if refused else 1)
        self._some_answer()
        seconds = f" for {self.patience.ssh:.0f} s" if "ssh-add" not in answer.error else ""
        raise Failed(
            f"{self.where()}: {what} failed{seconds} ({answer.complaint()}); see whether `gcloud "
            f"compute tpus tpu-vm ssh {self.slice.name} --zone={self.slice.zone}` lets you in"
        )

    def _failed_there(self, what: str, answers: dict[int, Answer]) -> str:
        """Says on which machine something failed, and with what line; nothing if on none."""
        for number, answer in answers.items():
            if answer.failed_there():
                on = f"worker {number} with status {answer.status}: {answer.last_words()}"
                return f"{self.where()}: {what} failed on {on}"
        return ""

    def _some_answer(self) -> None:
        """Names the machine that lets nobody in where others do: it is gone, not the way to all."""
        silent = [bool(answer.status) for answer in self._say("true")]
        self.require()
        if any(silent) and not all(silent):
            raise Gone(
                f"worker {silent.index(True)} of {self.slice.name}: has let nobody in for "
                f"{self.patience.ssh:.0f} s",
                machines=True,
            )

    def _refused(self, line: str) -> str:
        """What Google Cloud refuses, and the way out where it is known."""
        if re.search("quota", line, re.IGNORECASE):
            return (
                f"{self.where()}: {line}; ask for more of that quota of the Cloud TPU API for the "
                "zone at https://console.cloud.google.com/iam-admin/quotas, or delete what "
                "`status` lists"
            )
        return f"{self.where()}: refused ({line})"


def node(value: dict) -> dict:
    """Returns what a queued resource says of its machines."""
    return value["tpu"]["nodeSpec"][0]["node"]


def labels(value: dict) -> dict[str, str]:
    """Returns the labels of a queued resource."""
    return node(value).get("labels", {})
