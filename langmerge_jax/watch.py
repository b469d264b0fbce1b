"""A process that waits for the one that does the work, and says how that was ended.

Where another process of a job is gone, jax aborts those that are left: nothing that a process could
still say or answer comes after. So the one that was started waits, and the one that works is its
child. Knows no jax, so that it weighs little.
"""

import os
import signal
import subprocess
import sys
import threading
from typing import NoReturn

# Status of a door that was ended from outside; the same command goes on where it stood.
PREEMPTED = 128 + signal.SIGTERM
_ABORTED = 128 + signal.SIGABRT
_GONE = (
    "another process of this job is gone; start the same command again in all of them, it goes on "
    "from the newest checkpoint"
)
# In the process that works: descriptors by which it learns that the waiting one is gone, and says
# with which status it is about to end.
_PIPES = "LANGMERGE_JAX_WATCHED"
_said: int | None = None


def watched() -> None:
    """Has a child do the work of this command; returns in the child alone.

    This process passes SIGTERM on, and ends with the child's status. An abort of a child that had
    not said with which status it ends is jax's, for a process that is gone: it is told in a line,
    with status 143. If this process is killed the child ends as well.
    """
    global _said
    if pipes := os.environ.pop(_PIPES, ""):
        alive, _said = map(int, pipes.split(","))
        threading.Thread(target=_end_with_the_other, args=(alive,), daemon=True).start()
        return
    (alive, lives), (said, says) = os.pipe(), os.pipe()
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {_PIPES: f"{alive},{says}"},
        pass_fds=(alive, says),
    )
    os.close(alive)
    os.close(says)
    signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to the child too.
    status = child.wait()
    meant = os.read(said, 1)
    os.close(lives)
    if status < 0 and meant:
        status = meant[0]
    if status in (-signal.SIGABRT, _ABORTED):
        _tell(_GONE)
        sys.exit(PREEMPTED)
    if status < 0:
        name = signal.Signals(-status).name
        _tell(f"ended by {name}; start the same command again")
    sys.exit(status if status >= 0 else 128 - status)


def _tell(what: str) -> None:
    # What the child was writing may have been cut off in its line.
    print(f"\nerror: {what}", file=sys.stderr)


def lost() -> None:
    """Ends as if jax had aborted this process, which it is about to do; nothing if none waits."""
    if _said is not None:
        sys.stdout.flush()
        os._exit(_ABORTED)


def ends(status: int) -> None:
    """Says with which status this process is about to end, whatever jax does in leaving the job."""
    if _said is not None:
        os.write(_said, bytes([status]))


def _end_with_the_other(alive: int) -> NoReturn:
    os.read(alive, 1)  # Returns when nobody is left who could write.
    os._exit(128 + signal.SIGKILL)
