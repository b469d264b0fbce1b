"""How long work shows itself: a bar on a terminal, plain lines elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")

LINE_SECONDS = 10.0
_PLAIN = "{desc} {n_fmt}/{total_fmt}{postfix}"
_BARRED = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}"
# Columns that a bar takes at least, and those of the name that it may not take.
_BAR, _NAME = len(" |||") + 3, 12


class Progress:
    """Counts done work and shows what, how much of it, time left and rate.

    Messages that are logged meanwhile stand above the bar.

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
        self._open = contextlib.ExitStack()
        # Where plain lines are not wanted, a bar is not.
        if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            self._bar = tqdm.tqdm(
                total=total,
                initial=done,
                desc=what,
                bar_format=_BARRED,
                dynamic_ncols=True,
                leave=False,
            )
            self._open.callback(self._bar.close)
            self._open.enter_context(logging_redirect_tqdm())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind, *_):
        self._open.close()
        if kind is None:
            seconds = time.monotonic() - self._start
            done = self.done - self._first
            note = f", {self._note}" if self._note else ""
            logger.info("%s: %d %s in %.1f s%s", self._what, done, self._plural(), seconds, note)

    def update(self, count: int = 1, *, note: str = "", left: float | None = None) -> None:
        """Adds finished units.

        Args:
          count: of them.
          note: shown beside, such as "loss 0.31"; without one it is the units a second.
          left: seconds left; None takes the rate so far.
        """
        self.done += count
        self._note = note
        now = time.monotonic()
        rate = (self.done - self._first) / max(now - self._start, 1e-9)
        if left is None and rate:
            left = (self._total - self.done) / rate
        shown = [] if left is None else [f"{_duration(left)} left"]
        shown.append(note or f"{rate:.3g} {self._plural()}/s")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(shown), refresh=False)
            self._fit(f" {self.done}/{self._total}, {', '.join(shown)}")
            self._bar.update(count)
        elif now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            logger.info("%s: %d/%d, %s", self._what, self.done, self._total, ", ".join(shown))

    def _fit(self, beside: str) -> None:
        """Leaves out the bar, and cuts the name, where numbers need their place.

        Args:
          beside: what stands beside both.
        """
        room = (self._bar.format_dict["ncols"] or 80) - len(beside)
        has_bar = room - _BAR >= min(len(self._what), _NAME)
        self._bar.bar_format = _BARRED if has_bar else _PLAIN
        room = max(room - _BAR if has_bar else room, 1)
        name = self._what
        if len(name) > room:
            name = name[: room - 1].rstrip(", ") + "…"
        self._bar.set_description_str(name, refresh=False)

    def _plural(self) -> str:
        return self._unit + "s"


def _duration(seconds: float) -> str:
    """Minutes and seconds, before them hours if there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def short(number: float, space: str = "") -> str:
    """Returns three digits and a prefix of thousands: 12.3k, or with a space 12.3 k."""
    prefixes = ["", "k", "M", "G", "T", "P"]
    while abs(number) >= 999.5 and len(prefixes) > 1:
        number /= 1000
        prefixes.pop(0)
    return f"{number:#.3g}".rstrip(".") + space + prefixes[0]


def track(items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """Yields `items` while showing progress, one unit each."""
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.update()
