"""Runs the life of a multilingual adapter set at Llama-3.1-8B's shape on one GPU.

  python -m benchmarks.gpu

prints one table and writes benchmarks/gpu.json, part after part, so that a run that is cut off
keeps what it has. No part is begun after --budget_seconds, so that all ends within ten minutes:

  limits, weights    what the device does at best; random bfloat16 weights, drawn on it
  correct            attention, loss, LoRA and KnOTS beside float64 on the host
  train 128, 512     tokens a second of training's own step, 8 rows of one adapter
  five, adapters     five languages in one program and one by one; their adapters as files
  8192 by row/remat  8 rows of 8192 tokens: one after another with all that the backward pass needs
                     kept, and at once with rematerialisation
  knots, ties fold   the five merged by TIES-KnOTS, and by TIES of all deltas into full weights
  decode             generation with 1 row and with 64, and by eight adapters in one batch

Adapters have rank 64 on all projections; every token of a row is predicted. Times are of what is
compiled already, compiling stands beside. A share is that of the rate of a matrix product
(`matmul`, against model FLOPs, without what is computed again) or of a copy (`copy`, against bytes
that have to be read and written), both measured in the same run. `compiled memory` is what the
compiler says that a step takes, as `plan` counts it; `peak memory` the device's own count, which
never falls: it is told where a part has raised it. Bars are for one NVIDIA H200.

Needs jax with a GPU, flax, optax, orbax-checkpoint, safetensors and numpy, and no network. With
--tiny a tiny model goes the same way, on a CPU too.
"""

import functools
import os
import pathlib
import sys
import tempfile
from typing import Any

import jax
from absl import app, flags
from jax.sharding import Mesh

from benchmarks import gpu_correct, gpu_decoding, gpu_merging, gpu_training
from benchmarks.gpu_journal import Journal, Missing, Part
from benchmarks.gpu_shape import EIGHT_B, ROWS, TINY, Shape, make_base, measure_limits
from benchmarks.gpu_training import Setup
from benchmarks.machine import one_device
from benchmarks.measuring import ROOT, Section

_TINY = flags.DEFINE_bool("tiny", False, "A tiny model, for a try.")
_BUDGET = flags.DEFINE_float(
    "budget_seconds", 570.0, "Parts that have not begun by then are left out.", lower_bound=0
)
_SCRATCH = flags.DEFINE_string("scratch", tempfile.gettempdir(), "Where adapters are written.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Results; benchmarks/gpu.json, or for a try <scratch>/gpu.json."
)


def main(_) -> None:
    # As launch/xla_flags.sh has it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    # A kept compilation would make a cold one warm.
    jax.config.update("jax_enable_compilation_cache", False)
    mesh, shape = one_device(), TINY if _TINY.value else EIGHT_B
    device = mesh.devices.flat[0]
    if device.platform == "cpu" and not _TINY.value:
        sys.exit("error: jax finds no GPU here; --tiny goes the same way on a CPU")
    scratch = pathlib.Path(_SCRATCH.value)
    default = scratch / "gpu.json" if _TINY.value else ROOT / "benchmarks/gpu.json"
    output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else default
    journal = Journal(output, shape, device, _BUDGET.value)
    for name, part in parts(shape, mesh, scratch).items():
        journal.take(name, part)
    print(journal.table().text(), flush=True)
    print(f"written: {output}")
    if wrong := journal.wrong():
        sys.exit(f"error: {', '.join(wrong)}; the reasons are above")


def parts(shape: Shape, mesh: Mesh, scratch: pathlib.Path) -> dict[str, Part]:
    """Returns all parts, in an order in which each finds what it goes on from.

    Those of training come by the memory they take. What a run that is cut off can best spare is
    last.

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
        gpu_training.alone(section, shape, setup, left["limits"], length, bar)

    def together(section: Section) -> None:
        left["five"] = gpu_training.together(section, shape, left["plain"])

    def adapters(section: Section) -> None:
        left["adapters"] = gpu_merging.adapters(section, left["five"], scratch)
        # Its memory is wanted.
        del left["five"]

    def knots(section: Section, density: float) -> None:
        gpu_merging.knots(section, shape, mesh, left["limits"], left["adapters"], density)

    def fold(section: Section) -> None:
        gpu_merging.fold(section, shape, left["base"], left["limits"], left["adapters"])

    def decode(section: Section, **how: Any) -> None:
        gpu_decoding.decode(section, shape, left["base"], left["limits"], **how)

    some = functools.partial
    return {
        "limits": limits,
        "weights": weights,
        "correct": correct,
        f"train {shape.short}": some(train, length=shape.short),
        f"train {shape.middle}": some(train, length=shape.middle, bar="middle"),
        "five": together,
        "adapters": adapters,
        "decode 1": some(decode, rows=1, bar="decode"),
        f"decode {shape.many}": some(decode, rows=shape.many),
        f"{shape.long} by row": some(train, length=shape.long, bar="long", accumulation=ROWS),
        f"{shape.long} remat": some(train, length=shape.long, bar="long", remat="layer"),
        "knots 1": some(knots, density=1.0),
        "ties fold": fold,
        "decode 8 variants": some(decode, rows=shape.many // 8, variants=8),
        "knots 0.5": some(knots, density=0.5),
    }


class _Left(dict):
    """What parts leave to those that come after them, by name."""

    def __missing__(self, name: str) -> None:
        raise Missing(f"an earlier part left no {name}")


if __name__ == "__main__":
    app.run(main)
