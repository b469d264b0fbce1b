"""What comes after training: adapters as files, five of them merged, a merge folded into weights.

Bytes are what has to be moved in the device's memory: factors that are read, coordinates that the
merge lays out for all adapters and for their merge, each written and read, and what comes out.
"""

import pathlib
import tempfile
import time

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks import measuring
from benchmarks.gpu_decoding import random_lora
from benchmarks.gpu_shape import LANGUAGES, Limits, Shape
from benchmarks.gpu_training import Training
from benchmarks.measuring import Section
from langmerge_jax.adapters import Adapter, load_adapter, save_adapter
from langmerge_jax.merging import Merge, merge
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.fold import fold as fold_into
from langmerge_jax.models.lora import LoraSpec
from langmerge_jax.models.stacking import unstack


def to_host(
    section: Section, shape: Shape, base: Base, training: Training | None
) -> dict[str, Adapter]:
    """Takes adapters to the host: those of a training, or without one random ones."""
    start = time.perf_counter()
    if training is None:
        section.remark("random factors, as no five were trained")
        spec = LoraSpec(len(LANGUAGES), shape.rank, tuple(shape.config.projections()))
        lora = random_lora(base, spec)
        found = unstack(lora, names=LANGUAGES, scale=1.0, base=base.name)
    else:
        found = training.adapters()
    section.note("to the host", time.perf_counter() - start, "s")
    section.settings |= {"adapters": len(found), "bytes_an_adapter": _bytes(found) // len(found)}
    section.note("on the host", _bytes(found) / 1e9, "GB")
    return found


def to_files(section: Section, found: dict[str, Adapter], scratch: pathlib.Path) -> None:
    """Takes two adapters to files and back."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        seconds = []
        for name in list(found)[:2]:
            directory = pathlib.Path(folder) / name
            seconds.append(measuring.timed(lambda d=directory, n=name: save_adapter(d, found[n])))
            _refuse_other(found[name], load_adapter(directory))
        section.median("one as PEFT", seconds)


def _refuse_other(one: Adapter, other: Adapter) -> None:
    for module, factors in one.modules.items():
        back = other.modules[module]
        same = np.array_equal(factors.a, back.a) and np.array_equal(factors.b, back.b)
        if not same or factors.scale != back.scale:
            raise AssertionError(f"{module} comes back from its file as another")


def _bytes(found: dict[str, Adapter]) -> int:
    return sum(f.a.nbytes + f.b.nbytes for x in found.values() for f in x.modules.values())


def knots(
    section: Section,
    shape: Shape,
    mesh: Mesh,
    limits: Limits,
    found: dict[str, Adapter],
    density: float,
) -> None:
    """TIES-KnOTS of all, from the host's memory to the host's memory."""
    recipe, devices = f"ties_knots@{density:g}", list(mesh.devices.flat)
    ready = Merge(found, recipe, devices=devices)
    first = [modules[0] for modules in ready.alike()]
    section.note("cold, some modules", measuring.timed(lambda: dict(ready.factors(first))), "s")
    section.settings |= {"recipe": recipe, "modules": len(ready.stacks), "first": len(first)}
    start = time.perf_counter()
    merged = merge(found, recipe, devices=devices)
    seconds = time.perf_counter() - start
    across = _bytes(found) + _bytes({"merged": merged})
    moved = across + 2 * sum(map(ready.coordinate_bytes, ready.stacks))
    share = limits.of_copy(moved / seconds)
    section.note("warm", seconds, "s", most=shape.bars.get("knots"), share=share)
    section.note("bytes moved", moved / 1e9, "GB")
    section.note("over the link", across / 1e9, "GB")


def fold(
    section: Section, shape: Shape, base: Base, limits: Limits, found: dict[str, Adapter]
) -> None:
    """TIES of all deltas, folded into a copy of the weights on the device."""
    recipe, devices = "ties@0.5", list(base.mesh.devices.flat)

    def whole(modules: list[str] | None = None) -> None:
        deltas = Merge(found, recipe, devices=devices).deltas()
        jax.block_until_ready(fold_into(base.params, deltas.items(modules)))

    ready = Merge(found, recipe, devices=devices)
    first = [modules[0] for modules in ready.alike()]
    section.note("cold, some modules", measuring.timed(lambda: whole(first)), "s")
    section.settings |= {"recipe": recipe, "modules": len(ready.stacks), "first": len(first)}
    seconds = measuring.timed(whole)
    entries = sum(stack[0].out_features * stack[0].in_features for stack in ready.stacks.values())
    moved = _bytes(found) + 2 * sum(map(ready.coordinate_bytes, ready.stacks))
    moved += 2 * entries * base.dtype.itemsize
    share = limits.of_copy(moved / seconds)
    section.note("warm", seconds, "s", most=shape.bars.get("fold"), share=share)
    section.note("bytes moved", moved / 1e9, "GB")
    # Each delta goes by way of the host, in float32.
    section.note("over the link", (_bytes(found) + 2 * 4 * entries) / 1e9, "GB")
