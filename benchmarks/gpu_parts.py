"""The parts of `benchmarks.gpu`: their order, about how long each takes, and what they hand on."""

import functools
import pathlib
from typing import Any, NamedTuple

from jax.sharding import Mesh

from benchmarks import gpu_correct, gpu_decoding, gpu_merging, gpu_training
from benchmarks.gpu_journal import Missing, Part
from benchmarks.gpu_shape import ROWS, Shape, make_base, measure_limits
from benchmarks.gpu_training import Setup
from benchmarks.measuring import Section


class Timed(NamedTuple):
    """A part, and the seconds that it is reckoned to take on an H200, with compiling."""

    seconds: float
    part: Part


def parts(shape: Shape, mesh: Mesh, scratch: pathlib.Path) -> dict[str, Timed]:
    """Returns all parts, in an order in which each finds what it goes on from.

    What a run that is cut off can best spare is last: there is no bar for it.

    Args:
        shape: Of the model.
        mesh: Of one device.
        scratch: Where adapters are written.
    """
    left = _Left()

    def limits(section: Section) -> None:
        left["limits"] = measure_limits(section, shape, mesh.devices.flat[0])

    def weights(section: Section) -> None:
        left["base"] = make_base(section, shape, mesh)
        left["plain"] = Setup(shape, left["base"])

    def correct(section: Section) -> None:
        gpu_correct.check(section, shape, left["base"])

    def train(section: Section, length: int, bar: str = "", **other: Any) -> None:
        setup = Setup(shape, left["base"], **other) if other else left["plain"]
        # Rows of one length are the same ones, however they are trained on.
        name = f"gradient at {length}"
        left[name] = gpu_training.alone(
            section, shape, setup, left["limits"], length, bar, left.get(name)
        )

    def together(section: Section) -> None:
        left["five"] = gpu_training.together(section, shape, left["plain"])

    def adapters(section: Section) -> None:
        # Not kept: its memory is wanted.
        five = left.pop("five", None)
        left["adapters"] = gpu_merging.to_host(section, shape, left["base"], five)
        gpu_merging.to_files(section, left["adapters"], scratch)

    def knots(section: Section, density: float) -> None:
        gpu_merging.knots(section, shape, mesh, left["limits"], left["adapters"], density)

    def fold(section: Section) -> None:
        gpu_merging.fold(section, shape, left["base"], left["limits"], left["adapters"])

    def decode(section: Section, **how: Any) -> None:
        gpu_decoding.decode(section, shape, left["base"], left["limits"], **how)

    some, long = functools.partial, shape.long
    return {
        "limits": Timed(20, limits),
        "weights": Timed(35, weights),
        "correct": Timed(45, correct),
        f"train {shape.short}": Timed(45, some(train, length=shape.short)),
        f"train {shape.middle}": Timed(55, some(train, length=shape.middle, bar="middle")),
        "five": Timed(70, together),
        "adapters": Timed(15, adapters),
        "knots 1": Timed(30, some(knots, density=1.0)),
        "ties fold": Timed(60, fold),
        "knots 0.5": Timed(30, some(knots, density=0.5)),
        "decode 1": Timed(40, some(decode, rows=1, bar="decode")),
        f"{long} by row": Timed(75, some(train, length=long, bar="long", accumulation=ROWS)),
        f"decode {shape.many}": Timed(40, some(decode, rows=shape.many)),
        "decode 8 variants": Timed(45, some(decode, rows=shape.many // 8, variants=8)),
        f"{long} remat": Timed(90, some(train, length=long, remat="layer")),
    }


class _Left(dict):
    """What parts leave to those that come after them, by name."""

    def __missing__(self, name: str) -> None:
        raise Missing(f"an earlier part left no {name}")
