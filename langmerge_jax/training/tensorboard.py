"""What TensorBoard shows of a training."""

import pathlib
import socket
import time
from typing import Any

from langmerge_jax.training.steplog import speed

# So long what was written may lie in memory.
_FLUSH_SECONDS = 10.0


class TensorBoard:
    """A log of a training, as event files.

    Scalars by step: `loss/<adapter>`, `learning_rate/<adapter>`, and what `steplog.speed` says of
    the step.

    Args:
      folder: receives a file for each attempt; what an earlier one did beyond the step at which
        this one starts is not shown.
      writes: whether there is one.
    """

    def __init__(self, folder: pathlib.Path, *, writes: bool = True):
        self._folder, self._writes = folder, writes
        self._writer, self._peak, self._flushed = None, None, 0.0

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *_) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, event: str, **values: Any) -> None:
        """Takes one event of those that `steplog.StepLog` names."""
        if self._writes and event == "start":
            self._start(values["step"])
            self._peak = values["peak"]
        elif self._writes and event == "step":
            scalars = {f"loss/{name}": value for name, value in values["loss"].items()}
            scalars |= {f"learning_rate/{name}": x for name, x in values["learning_rate"].items()}
            scalars |= speed([values], [self._peak])
            known = {name: value for name, value in scalars.items() if value is not None}
            summary = {"value": [{"tag": k, "simple_value": x} for k, x in known.items()]}
            self._write(values["step"], summary=summary)

    def _start(self, step: int) -> None:
        # Slow to import, and not every training wants it. Its SummaryWriter writes from a thread,
        # behind a queue on which a training would wait for ever if the disk were full.
        import tensorboardX
        from tensorboardX.proto.event_pb2 import SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard takes the files in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._writer = tensorboardX.RecordWriter(str(self._folder / name))
        self._write(step, file_version="brain.Event:2")
        # What earlier files hold of this step and later ones is no longer shown.
        self._write(step, session_log={"status": SessionLog.START})

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
        if time.monotonic() >= self._flushed + _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()
