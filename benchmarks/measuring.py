"""Times calls and whole processes, weighs the latter, and holds results against their bars."""

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from langmerge_jax.reporting.table import Cell, Table

ROOT = pathlib.Path(__file__).resolve().parents[1]

_SAMPLE_SECONDS = 0.05
# Threads that spin after their work, as OpenMP's do, are asleep by then.
_PAUSE_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Process:
    """What a process took, with its children.

    Attributes:
        seconds: From its start to its end.
        anonymous: Bytes of memory that is no file's, at the peak (RssAnon).
        resident: Bytes of all memory, files that it maps included, at the peak (VmRSS).
        read: Bytes that came from the disk.
        written: Bytes that went to the disk or wait to.
        output: Of stdout.
    """

    seconds: float
    anonymous: int
    resident: int
    read: int
    written: int
    output: str


def run(command: Sequence[str], **environment: str) -> Process:
    """Runs a command in the repository's root; one that fails ends the benchmark."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=errors, env=_environment() | environment
        )
        peaks, done = {"RssAnon": 0, "VmRSS": 0}, threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, peaks, done))
        sampler.start()
        # Of the process as a whole, known once it has ended, where samples could miss the last.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        sampler.join()
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)}: status {process.returncode}\n{errors.read()[-4000:]}")
        return Process(
            seconds=seconds,
            anonymous=peaks["RssAnon"],
            resident=peaks["VmRSS"],
            read=usage.ru_inblock * 512,
            written=usage.ru_oublock * 512,
            output=output.read(),
        )


def call(function: Callable[..., Any], *arguments: Any, **environment: str) -> tuple[Process, Any]:
    """Runs a function of a module of this package in a process of its own.

    Args:
        function: Takes JSON values and returns one.

    Returns:
        What the process took, and what the function returned.
    """
    module = function.__module__
    if module == "__main__":
        module = sys.modules[module].__spec__.name
    program = (
        f"import json, sys; from {module} import {function.__name__} as function; "
        "print(json.dumps(function(*json.loads(sys.argv[1]))))"
    )
    process = run([sys.executable, "-c", program, json.dumps(arguments)], **environment)
    return process, json.loads(process.output.splitlines()[-1])


def _environment() -> dict[str, str]:
    # A kept compilation would make a cold start warm.
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return kept | {"HF_HUB_OFFLINE": "1"}


def _sample(pid: int, peaks: dict[str, int], done: threading.Event) -> None:
    while not done.wait(_SAMPLE_SECONDS):
        now = dict.fromkeys(peaks, 0)
        for one in _family(pid):
            # Any of them may end in between.
            with contextlib.suppress(OSError):
                for line in pathlib.Path(f"/proc/{one}/status").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name in now:
                        now[name] += int(value.split()[0]) * 1024
        for name, value in now.items():
            peaks[name] = max(peaks[name], value)


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in pathlib.Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
    """Times calls in turns, so that a slow minute of the machine hits them all alike.

    Returns:
        Seconds of each repeat. What a call returns is waited for by the call itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, contestant in contestants.items():
            time.sleep(_PAUSE_SECONDS)
            seconds[name].append(timed(contestant))
    return seconds


def timed(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def forget(paths: Iterable[pathlib.Path]) -> None:
    """Drops files from the page cache, so that the next reader reads the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Share(NamedTuple):
    """Of what could be reached at best: how much of it, and what that is."""

    value: float
    of: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """A number, and the bar that it has to reach, if any.

    Attributes:
        value, unit: What was measured.
        bar: The least or the most that it may be; None for a number that is only told.
        least: Whether the bar is a least one.
        share: Of a limit, where there is one.
    """

    value: float
    unit: str
    bar: float | None = None
    least: bool = True
    share: Share | None = None

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value >= self.bar if self.least else self.value <= self.bar

    def cells(self) -> list[Cell]:
        """The finding as a row of a table: value, bar, whether it is met."""
        if self.bar is None:
            return [Cell(_said(self.value, self.unit)), Cell("-"), Cell("-")]
        bar = f"{'>=' if self.least else '<='} {_said(self.bar, self.unit)}"
        return [Cell(_said(self.value, self.unit)), Cell(bar), Cell("yes" if self.met else "NO")]


class Section:
    """What one case of a benchmark found.

    Args:
        **settings: Sizes and the like that the numbers belong to.
    """

    def __init__(self, **settings: Any):
        self.settings = settings
        self.findings: dict[str, Finding] = {}
        self.seconds: dict[str, list[float]] = {}
        self.remarks: list[str] = []

    def remark(self, text: str) -> None:
        """Notes what the numbers have to be read with."""
        self.remarks.append(text)
        print(f"  {text}", file=sys.stderr, flush=True)

    def attempt(self, name: str, call: Callable[[], Any]) -> bool:
        """Makes a call, and goes on where it raises, which is noted as more than may be.

        Returns:
            Whether it came through.
        """
        try:
            call()
        except Exception as error:
            traceback.print_exc()
            self.note(f"{name} fails", 1, most=0)
            self.remark(f"{name}: {type(error).__name__}: {error}")
            return False
        return True

    def note(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        least: float | None = None,
        most: float | None = None,
        share: Share | None = None,
    ) -> None:
        """Notes a number, with the least or the most that it may be, and its share of a limit."""
        bar = most if least is None else least
        self.findings[name] = Finding(float(value), unit, bar, most is None, share)
        print(f"  {name}: {_said(float(value), unit)}", file=sys.stderr, flush=True)

    def median(self, name: str, seconds: Sequence[float], **bar: float) -> float:
        """Notes the median of the repeats of something; returns it."""
        self.seconds[name] = [round(x, 5) for x in seconds]
        value = statistics.median(seconds)
        self.note(name, value, "s", **bar)
        return value

    def json(self) -> dict[str, Any]:
        """Returns the section as JSON values."""
        findings = {}
        for name, finding in self.findings.items():
            findings[name] = {"value": float(f"{finding.value:.5g}"), "unit": finding.unit}
            if finding.bar is not None:
                side = "least" if finding.least else "most"
                findings[name] |= {side: finding.bar, "met": finding.met}
            if finding.share is not None:
                share = float(f"{finding.share.value:.5g}")
                findings[name]["share"] = {"value": share, "of": finding.share.of}
        told = {"remarks": self.remarks} if self.remarks else {}
        return {"settings": self.settings, "findings": findings, "seconds": self.seconds} | told

    def table(self, title: str) -> Table:
        """Returns the findings with their bars."""
        rows = {name: finding.cells() for name, finding in self.findings.items()}
        return Table(title, "", ["measured", "bar", "met"], rows)


def _said(value: float, unit: str) -> str:
    number = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{number} {unit}".strip()
