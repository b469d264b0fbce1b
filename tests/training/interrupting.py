"""Interrupts trainings at a chosen step, from within the process."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from langmerge_jax.training import loop, steps
from langmerge_jax.training.checkpoint import Checkpoints


class Killed(BaseException):
    pass


def _kill() -> None:
    raise Killed


@contextlib.contextmanager
def killed_after(count: int) -> Iterator[None]:
    """Has the training within end as if killed, when so many losses have been read."""
    opened = []

    def opening(*args):
        opened.append(Checkpoints(*args))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Checkpoints", opening)
        with pytest.raises(Killed), _calling(_kill, count):
            yield
        # Unlike a killed process, this one still writes.
        opened[0].close()


@contextlib.contextmanager
def terminated_after(count: int) -> Iterator[None]:
    """Sends SIGTERM to this process when so many losses have been read; expects status 143."""
    asking = _calling(lambda: os.kill(os.getpid(), signal.SIGTERM), count)
    with pytest.raises(SystemExit) as ended, asking:
        yield
    assert ended.value.code == 143


@contextlib.contextmanager
def _calling(do: Callable[[], None], count: int) -> Iterator[None]:
    record, seen = steps._record, []

    def recording(*args):
        if len(seen) == count:
            do()
        seen.append(args)
        return record(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_record", recording)
        yield
