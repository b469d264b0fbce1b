"""Runs the life of a multilingual adapter set at Llama-3.1-8B's shape on one GPU.

  python -m benchmarks.gpu

prints one table and writes benchmarks/gpu.json, part after part. All ends within ten minutes: a
part is begun only if what it is reckoned to take fits in --budget_seconds, and --grace_seconds
after these the process ends with what it has found, told and written.

  limits, weights    what the device does at best; random bfloat16 weights, drawn on it
  correct            attention, loss, LoRA and KnOTS beside float64 on the host
  train 128, 512     tokens a second of training's own step, 8 rows of one adapter
  five, adapters     five languages in one program and one by one; their adapters as files
  knots, ties fold   the five merged by TIES-KnOTS, and by TIES of all deltas into full weights
  decode             generation with 1 row and with 64, and by eight adapters in one batch
  8192 by row/remat  8 rows of 8192 tokens: one after another with all that the backward pass needs
                     kept, and at once with rematerialisation

Adapters have rank 64 on all projections; every token of a row is predicted. Times are of what is
compiled already, compiling stands beside. A share is that of the rate of a matrix product
(`matmul`, against model FLOPs, without what is computed again) or of a copy (`copy`, against bytes
that have to be read and written), both measured in the same run. `compiled memory` is what the
compiler says that a step takes, as `plan` counts it; `measured memory` has, in place of what comes
beside the arguments, what the device had in use beside them while steps were timed, and `memory` of
generation is that alone. `gradient apart` compares a step with the same one taken in another way.
Bars are for one NVIDIA H200, and are left out elsewhere. The status is 1 if a part failed or was
cut off, or an error is too large.

Needs jax with a GPU, flax, optax, orbax-checkpoint, safetensors and numpy, and no network. With
--tiny a tiny model goes the same way, on a CPU too.
"""

# ruff: noqa: E402
import time

# Imports take their part of the ten minutes.
_START = time.monotonic()

import os
import pathlib
import sys
import tempfile

import jax
from absl import app, flags

from benchmarks.gpu_journal import Journal
from benchmarks.gpu_parts import parts
from benchmarks.gpu_shape import EIGHT_B, TINY, for_device
from benchmarks.machine import one_device
from benchmarks.measuring import ROOT

_TINY = flags.DEFINE_bool("tiny", False, "A tiny model, for a try.")
_BUDGET = flags.DEFINE_float(
    "budget_seconds", 570.0, "In which all parts are to be done.", lower_bound=0
)
_GRACE = flags.DEFINE_float(
    "grace_seconds", 20.0, "After the budget, when a part is ended that is not done.", lower_bound=0
)
_SCRATCH = flags.DEFINE_string("scratch", tempfile.gettempdir(), "Where adapters are written.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Results; benchmarks/gpu.json, or for a try <scratch>/gpu.json."
)


def main(_) -> None:
    # As launch/xla_flags.sh has it.
    if not os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION"):
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.9")
    # A kept compilation would make a cold one warm.
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = one_device()
    device = mesh.devices.flat[0]
    if device.platform == "cpu" and not _TINY.value:
        sys.exit("error: jax finds no GPU here; --tiny goes the same way on a CPU")
    shape = for_device(TINY if _TINY.value else EIGHT_B, device.device_kind)
    scratch = pathlib.Path(_SCRATCH.value)
    default = scratch / "gpu.json" if _TINY.value else ROOT / "benchmarks/gpu.json"
    output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else default
    try:
        journal = Journal(output, shape, _BUDGET.value, _START)
    except OSError as error:
        sys.exit(f"error: --output={output}: {error.strerror}; nothing was measured")
    wanted = parts(shape, mesh, scratch)
    with journal.ended_after(_BUDGET.value + _GRACE.value, wanted):
        for name, (seconds, part) in wanted.items():
            journal.take(name, part, seconds)
    sys.exit(journal.tell())


if __name__ == "__main__":
    app.run(main)
