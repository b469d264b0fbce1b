"""A slice from asking for it to a command that runs on all its machines."""

import dataclasses
import json
import pathlib
import re
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
# Asked again, they would be answered the same.
_FINAL = re.compile(
    "active account|gcloud auth|PERMISSION_DENIED|UNAUTHENTICATED|SERVICE_DISABLED|"
    "INVALID_ARGUMENT|unrecognized arguments|[Qq]uota"
)


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

    def create(self) -> None:
        answer = gcloud.run(gcloud.create(self.slice), _TIMEOUT)
        if answer.status:
            raise Failed(self._refused(answer.complaint()))
        print(f"{self.where()}: asked for, {self.slice.accelerator}", flush=True)

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
        return len(node.get("networkEndpoints", ())) or 1

    def pack(self) -> None:
        """Packs the checkout as it is now; over hours and preemptions that is what runs."""
        remote.pack(self._archive)

    def set_up(self) -> None:
        """Brings what was packed to all machines and makes the environment there."""
        copy = gcloud.copy(self.slice, self._archive)
        self._remote("copying the checkout", lambda: gcloud.run(copy, _TIMEOUT))
        self._remote("unpacking it", lambda: self._say(remote.unpack_command()))
        self._remote("setting up", lambda: self._say(remote.setup_command(self.share)))

    def start(self, command: Sequence[str]) -> None:
        start = remote.start_command(self.slice.name, self.share, command)
        self._remote("starting", lambda: self._say(start))

    def stop(self) -> None:
        self._remote("stopping", lambda: self._say(remote.worker_command("stop")))

    def poll(self, offset: int) -> list[Report | None]:
        """Returns how the command stands on each machine; None for one that does not answer."""
        answer = self._say(remote.worker_command("poll", str(offset)))
        if answer.status or not self._machines:
            self._machines = self.require()
        silent = None if answer.status else Report("none", None, "", 0, b"")
        return [
            remote.read(self._said(number), offset) or silent for number in range(self._machines)
        ]

    def fetch_logs(self) -> list[pathlib.Path]:
        """Brings the log of the last command here from all machines that answer."""
        answer = self._say(remote.worker_command("log"), folder := self.folder / "logs")
        found = sorted(path for path in folder.glob("*.log") if path.stat().st_size)
        if answer.status and not found:
            raise Failed(f"{self.where()}: no logs ({answer.complaint()})")
        return found

    def list_all(self, kind: str) -> list[dict]:
        """Returns all that lives in the zone; `kind` is queued-resources or tpu-vm."""
        answer = self._ask(gcloud.list_all(self.slice, kind))
        return json.loads(answer.output) if answer.status == 0 else []

    def delete(self) -> None:
        """Deletes the queued resource and its machines, if there are any.

        Raises:
          Failed: if Google Cloud does not.
        """
        for _ in self.patience.tries():
            if self.look()[0] == ABSENT:
                return
            answer = gcloud.run(gcloud.delete(self.slice), _TIMEOUT)
            if answer.status == 0:
                print(f"{self.where()}: deleted", flush=True)
                return
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
            if _FINAL.search(answer.error):
                break
        raise Failed(
            f"{self.where()}: gcloud does not answer ({answer.complaint()}); what runs goes on"
        )

    def _say(self, command: str, folder: pathlib.Path | None = None) -> Answer:
        folder = folder or self.folder / "said"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.log"):
            old.unlink()
        return gcloud.run(gcloud.ssh(self.slice, command, folder), _TIMEOUT)

    def _said(self, number: int) -> bytes:
        path = self.folder / "said" / f"{number}.log"
        return path.read_bytes() if path.exists() else b""

    def _remote(self, what: str, act: Callable[[], Answer]) -> None:
        """Has something done on all machines, again while they do not let anybody in.

        Raises:
          Gone: if they were taken away meanwhile.
          Failed: if it failed there, or they let nobody in for too long.
        """
        for _ in self.patience.tries():
            answer = act()
            if answer.status == 0:
                return
            if "SSH agent" in answer.error and "ssh-add" in answer.error:
                break
            self.require()
            if answer.status != 255 and "ERROR: (gcloud." not in answer.error:
                raise Failed(f"{self.where()}: {what} failed on {self._last_words(answer)}")
        self._some_answer()
        seconds = f" for {self.patience.ssh:.0f} s" if "ssh-add" not in answer.error else ""
        raise Failed(
            f"{self.where()}: {what} failed{seconds} ({answer.complaint()}); see whether `gcloud "
            f"compute tpus tpu-vm ssh {self.slice.name} --zone={self.slice.zone}` lets you in"
        )

    def _some_answer(self) -> None:
        """Names the machine that lets nobody in where others do: it is gone, not the way to all."""
        self._say("echo here")
        answer = [bool(self._said(number)) for number in range(self.require())]
        if any(answer) and not all(answer):
            raise Gone(
                f"worker {answer.index(False)} of {self.slice.name}: has let nobody in for "
                f"{self.patience.ssh:.0f} s",
                machines=True,
            )

    def _last_words(self, answer: Answer) -> str:
        """Says which machine failed, and with what line."""
        found = re.search(r"execution on worker (\d+) failed with exit status (\d+)", answer.error)
        number = int(found[1]) if found else 0
        words = self._said(number).decode(errors="replace").strip().splitlines()
        line = words[-1].strip() if words else answer.complaint()
        return f"worker {number} with status {found[2] if found else answer.status}: {line}"

    def _refused(self, line: str) -> str:
        """What Google Cloud refuses, and the way out where it is known."""
        if re.search("quota", line, re.IGNORECASE):
            return (
                f"{self.where()}: {line}; ask for more of that quota of the Cloud TPU API for the "
                "zone at https://console.cloud.google.com/iam-admin/quotas, or delete what "
                "`status` lists"
            )
        return f"{self.where()}: refused ({line})"
