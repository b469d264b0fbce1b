"""How long work shows itself: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")

LINE_SECONDS = 10.0


class Progress:
    """Counts done work and shows what, rate and time left.

    Args:
      what: a few words.
      total: units in all.
      unit: name of one, such as "step".
      done: units that an earlier run has done already.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0):
        self._what, self._total, self._unit = what, total, unit
        self.done, self._first, self._start = done, done, time.monotonic()
        self._next_line = self._start + LINE_SECONDS
        self._note = ""
        self._bar = None
        # Where plain lines are not wanted, a bar is not.
        if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            import tqdm

            self._bar = tqdm.tqdm(
                total=total,
                initial=done,
                desc=what,
                unit=f" {unit}",
                dynamic_ncols=True,
                leave=False,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind, *_):
        if self._bar is not None:
            self._bar.close()
        if kind is None:
            seconds = time.monotonic() - self._start
            done = self.done - self._first
            logger.info(
                "%s: %d %s in %.1f s%s", self._what, done, self._plural(), seconds, self._note
            )

    def update(self, count: int = 1, **values: float) -> None:
        """Adds finished units; `values` are shown beside, such as loss=0.31."""
        self.done += count
        if values:
            self._note = "".join(f", {k} {v:.4g}" for k, v in values.items())
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(count)
            self._bar.set_postfix_str(self._note.removeprefix(", "), refresh=False)
        elif now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            rate = (self.done - self._first) / (now - self._start)
            left = (self._total - self.done) / rate
            logger.info(
                "%s: %d of %d %s, %.3g a second, %.0f s left%s",
                self._what, self.done, self._total, self._plural(), rate, left, self._note,
            )  # fmt: skip

    def _plural(self) -> str:
        return self._unit + "s"


def track(items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """Yields `items` while showing progress, one unit each."""
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.update()
