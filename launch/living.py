"""What lives in Google Cloud, and so costs."""

import datetime
import shlex

from launch import gcloud
from launch.pod import ABSENT, DEAD, Pod, labels, node


def line(pod: Pod) -> str:
    """Returns what is left of a slice, and how to delete it."""
    state, value = pod.look()
    if state == ABSENT:
        return f"nothing of {pod.where()} is running"
    if gcloud.LABEL not in labels(value).items():
        return f"still there: {pod.where()}, {state}, which is not of this launcher"
    kinds = {"ACTIVE": "still running", "WAITING_FOR_RESOURCES": "still in the queue"}
    kind = kinds.get(state, "takes up quota" if state in DEAD else "still there")
    age = _age(value.get("createTime", ""))
    return f"{kind}: {pod.where()}, {state}, {age} old (delete with {again('delete', pod)})"


def again(action: str, pod: Pod) -> str:
    """Returns the command for a further action on a slice."""
    name = [] if action == "status" else [f"--name={pod.slice.name}"]
    return shlex.join(["python", "-m", "launch.tpu_pod", action, *name, *pod.slice.place()])


def table(pod: Pod) -> str:
    """Returns a table of what was started here and lives in a zone: queued resources and nodes."""
    rows = [("NAME", "KIND", "ACCELERATOR", "STATE", "AGE")]
    for kind in ("queued-resources", "tpu-vm"):
        for value in pod.list_all(kind):
            machines = value if kind == "tpu-vm" else node(value)
            if gcloud.LABEL not in machines.get("labels", {}).items():
                continue
            state = value["state"] if kind == "tpu-vm" else value["state"]["state"]
            accelerator = machines.get("acceleratorType", "").rpartition("/")[2]
            name = value["name"].rpartition("/")[2]
            rows.append((name, kind, accelerator, state, _age(value.get("createTime", ""))))
    if len(rows) == 1:
        return f"nothing that was started here lives in {pod.slice.zone}"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _age(since: str) -> str:
    if not since:
        return "?"
    # Behind the seconds it has nine digits, more than Python reads.
    start = datetime.datetime.fromisoformat(since[:19] + "+00:00")
    minutes = int((datetime.datetime.now(datetime.UTC) - start).total_seconds() // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
