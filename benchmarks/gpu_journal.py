"""Takes the parts of `benchmarks.gpu` in turn, in time, and writes down what each found."""

import contextlib
import gc
import importlib.metadata
import os
import pathlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from benchmarks.gpu_shape import Shape
from benchmarks.machine import describe_machine
from benchmarks.measuring import Section
from langmerge_jax.files import write_json
from langmerge_jax.reporting.table import Cell, Table

_PACKAGES = ("jaxlib", "flax", "optax", "orbax-checkpoint", "safetensors", "numpy")
# One of each pair, where jax has a GPU.
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")

Part = Callable[[Section], None]


class OutOfMemory(Exception):
    """What the device has no room for; the message says what it asks for."""


class Missing(Exception):
    """What a part goes on from, and an earlier one has not left."""


class Journal:
    """Takes parts, and writes down after each what there is.

    Args:
        path: Of the JSON file.
        shape: That is run at.
        budget: Seconds in which all parts are to be done.
        start: From when they count, as of `time.monotonic`; None for now.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(self, path: pathlib.Path, shape: Shape, budget: float, start: float | None = None):
        self._path, self._budget, self._barred = path, budget, bool(shape.bars)
        self._start = time.monotonic() if start is None else start
        installed = {found.name for found in importlib.metadata.distributions()}
        self._head = {
            "machine": describe_machine(*_PACKAGES, *(x for x in _PLUGINS if x in installed)),
            "shape": shape.name,
            "model": shape.config.to_hf(),
            "rank": shape.rank,
            "budget_seconds": budget,
        }
        self.parts: dict[str, dict[str, Any]] = {}
        self._sections: dict[str, Section] = {}
        # What is running, when it began and what it has found; None between two parts.
        self._running: tuple[str, float, Section] | None = None
        # Of whoever writes: the main thread, or the one that ends the process.
        self._lock = threading.Lock()
        self._write()

    @contextlib.contextmanager
    def ended_after(self, seconds: float, names: Iterable[str]) -> Iterator[None]:
        """Within, the process is ended at that second, with all that is found by then told.

        Args:
            seconds: Since the start.
            names: Of the parts that are to be taken.
        """
        end = threading.Timer(seconds - self._passed(), self._cut_off, [list(names)])
        end.daemon = True
        end.start()
        yield
        with self._lock:
            end.cancel()

    def take(self, name: str, part: Part, seconds: float = 0) -> None:
        """Takes one part. One that fails is told of, and the others go on.

        Args:
            name: Of the part.
            part: Is given a section for what it finds.
            seconds: That it takes, about; it is left out where the budget has fewer left.
        """
        print(name, file=sys.stderr, flush=True)
        began, section, why = self._passed(), Section(), None
        if began + seconds > self._budget:
            why = f"{began:.0f} s had passed, and it takes about {seconds:.0f} s"
            self._note(name, section, "left out", why)
            return
        self._running = name, began, section
        try:
            part(section)
            status = "measured"
        except Missing as error:
            status, why = "left out", str(error)
        except OutOfMemory as error:
            status, why = "out of memory", str(error)
        except jax.errors.JaxRuntimeError as error:
            status, why = "out of memory", str(error)
            if "RESOURCE_EXHAUSTED" not in why:
                status = "failed"
                traceback.print_exc()
        except Exception as error:
            status, why = "failed", f"{type(error).__name__}: {error}"
            traceback.print_exc()
        # What a failed part held is in its traceback, and gone with it.
        gc.collect()
        self._note(name, section, status, why, wall_seconds=round(self._passed() - began, 2))

    def tell(self) -> str | None:
        """Prints the table; returns an error, where something is wrong."""
        print(self.table().text(), flush=True)
        print(f"written: {self._path}", flush=True)
        wrong = self.wrong()
        return f"error: {', '.join(wrong)}; the reasons are above" if wrong else None

    def wrong(self) -> list[str]:
        """Returns the parts that failed or were cut off, and the errors that are too large.

        An error is told from what is measured by having no unit and a most that it may be.
        """
        ended = ("failed", "cut off")
        wrong = [name for name, part in self.parts.items() if part["status"] in ended]
        for name, section in self._sections.items():
            for what, found in section.findings.items():
                if found.met is False and not found.least and not found.unit:
                    wrong.append(f"{name}: {what}")
        return wrong

    def _passed(self) -> float:
        return time.monotonic() - self._start

    def _note(self, name: str, section: Section, status: str, why: str | None, **told: Any) -> None:
        with self._lock:
            self._put(name, section, status, why, **told)
            self._running = None
            self._write()

    def _put(self, name: str, section: Section, status: str, why: str | None, **told: Any) -> None:
        told |= {"why": why} if why else {}
        self.parts[name] = {"status": status} | told | section.json()
        self._sections[name] = section

    def _write(self) -> None:
        write_json(self._path, self._head | {"parts": self.parts})

    def _cut_off(self, names: Sequence[str]) -> None:
        """Ends the process, beside the part that runs."""
        with self._lock:
            if threading.current_thread().finished.is_set():  # All was done in time.
                return
            try:
                now = self._passed()
                if self._running:
                    name, began, section = self._running
                    told = {"wall_seconds": round(now - began, 2)}
                    self._put(name, _copied(section), "cut off", f"not done at {now:.0f} s", **told)
                for name in names:
                    if name not in self.parts:
                        self._put(name, Section(), "left out", f"the end came at {now:.0f} s")
                print(self.tell(), file=sys.stderr, flush=True)
                self._write()
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(1)

    def table(self) -> Table:
        """Returns every figure, and what there is none of."""
        rows, notes, machine = {}, [], self._head["machine"]
        for name, section in self._sections.items():
            for what, finding in section.findings.items():
                measured, bar, met = finding.cells()
                share = "-"
                if finding.share is not None:
                    share = f"{100 * finding.share.value:.3g} % {finding.share.of}"
                bar = Cell(bar.text.removesuffix(f" {finding.unit}"))
                rows[f"{name}: {what}"] = [measured, Cell(share), bar, met]
            part = self.parts[name]
            if part["status"] != "measured":
                rows[name] = [Cell(part["status"]), *[Cell("-")] * 3]
                notes.append(f"{name}: {part['why'].splitlines()[0]}")
            notes += [f"{name}: {remark.splitlines()[0]}" for remark in section.remarks]
        if not self._barred:
            notes.append("No bars: they are for Llama-3.1-8B's shape on an NVIDIA H200.")
        title = f"{self._head['shape']}'s shape on {machine['device']}, {machine['date']}"
        notes.insert(0, f"Rank {self._head['rank']}, bfloat16; jax {machine['jax']}.")
        return Table(title, "", ["measured", "share", "bar", "met"], rows, notes)


def _copied(section: Section) -> Section:
    """As it is now, while another thread goes on with it; each of its dicts is copied at once."""
    found = Section(**section.settings)
    found.findings, found.seconds = dict(section.findings), dict(section.seconds)
    found.remarks = list(section.remarks)
    return found
