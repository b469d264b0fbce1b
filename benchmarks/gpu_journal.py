"""Takes the parts of `benchmarks.gpu` one after another, and writes down what each found."""

import gc
import importlib.metadata
import pathlib
import sys
import time
import traceback
from collections.abc import Callable
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
        device: Whose memory is looked at.
        budget: Seconds after which no part is begun.
    """

    def __init__(self, path: pathlib.Path, shape: Shape, device: jax.Device, budget: float):
        self._path, self._device, self._budget = path, device, budget
        self._start = time.monotonic()
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

    def take(self, name: str, part: Part) -> None:
        """Takes one part. One that fails is told of, and the others go on."""
        print(name, file=sys.stderr, flush=True)
        began, section = time.monotonic() - self._start, Section()
        if began > self._budget:
            self._note(name, section, "left out", f"{began:.0f} s had passed")
            return
        before, why = self._peak(), None
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
        peak = self._peak()
        if peak is not None and peak > before:
            section.note("peak memory", peak / 1e9, "GB")
        seconds = time.monotonic() - self._start - began
        self._note(name, section, status, why, wall_seconds=round(seconds, 2), peak_bytes=peak)

    def wrong(self) -> list[str]:
        """Returns the parts that failed, and the figures of the first that is not correct."""
        failed = [name for name, part in self.parts.items() if part["status"] == "failed"]
        checks = self._sections["correct"].findings if "correct" in self._sections else {}
        return failed + [f"correct: {name}" for name, found in checks.items() if not found.met]

    def _note(self, name: str, section: Section, status: str, why: str | None, **told: Any) -> None:
        told |= {"why": why} if why else {}
        self.parts[name] = {"status": status} | told | section.json()
        self._sections[name] = section
        write_json(self._path, self._head | {"parts": self.parts})

    def _peak(self) -> int | None:
        """The most bytes that were in use at once so far; None where the device does not count."""
        return (self._device.memory_stats() or {}).get("peak_bytes_in_use")

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
        if self._peak() is None:
            notes.append("This device does not count the memory in use.")
        title = f"{self._head['shape']}'s shape on {machine['device']}, {machine['date']}"
        notes.insert(0, f"Rank {self._head['rank']}, bfloat16; jax {machine['jax']}.")
        return Table(title, "", ["measured", "share", "bar", "met"], rows, notes)
