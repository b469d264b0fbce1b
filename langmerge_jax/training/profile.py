"""Records what host and devices do during a few steps."""

import logging
import pathlib
import time
from typing import Any

import jax

logger = logging.getLogger(__name__)


class Profile:
    """Has jax's profiler record some steps of a training, and says so in the log.

    What is recorded opens in XProf, TensorBoard's profile page, or Perfetto.

    Args:
      folder: receives the trace.
      steps: to be recorded, consecutive; none for an empty range.
    """

    def __init__(self, folder: pathlib.Path, steps: range):
        self._folder, self._steps = folder, steps
        self._first: int | None = None
        self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        if self._running:
            self._stop(None)
        elif self._steps and self._first is None:
            logger.warning(
                "profile_steps=%d:%d: no such step was taken here, nothing is recorded",
                *(self._steps.start, self._steps.stop),
            )

    def before(self, number: int, state: Any) -> float:
        """Starts or ends the recording where it is due.

        Args:
          number: of the step that comes next.
          state: its input; what is recorded begins and ends with it computed.

        Returns:
          the seconds that this took, without waiting for the state.
        """
        if (number in self._steps) == self._running:
            return 0.0
        jax.block_until_ready(state)
        start = time.monotonic()
        if self._running:
            self._stop(number)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._folder)
            self._running, self._first = True, number
        return time.monotonic() - start

    def _stop(self, number: int | None) -> None:
        jax.profiler.stop_trace()
        self._running = False
        last = "the end" if number is None else number - 1
        logger.info("profile of steps %d to %s: %s", self._first, last, self._folder)
