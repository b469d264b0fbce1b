"""Times and weighs merges, each beside the fastest that there is to compare it with.

  python -m benchmarks.merge --case=projection,growth

prints a table for every case and writes its section of benchmarks/merge.json:

  knots_8b    `ties_knots` of five r=64 adapters of Llama-3.1-8B through the door, from files to a
              file, beside the bare linear algebra and a copy of the files
  projection  one 4096 x 4096 projection, beside KnOTS' own procedure and PEFT
  mergekit    five r=16 adapters and a base of half a billion weights to a full model, beside
              mergekit
  delta_8b    `ties` over all deltas of Llama-3.1-8B, folded into a base
  growth      2 to 50 adapters on one projection

Cold is a process of its own, from its start with all imports and compilations to its end; warm is
the same work with everything compiled. A number is the median of `--repeats`; ours and the peer's
take turns. Every result is compared with the peer's before it is timed. The peers have all cores
and their fastest settings.

The cases need the extra `dev`.
"""

import functools
import json
import os
import pathlib
import shutil
import sys

from absl import app, flags

from benchmarks import merge_files, merge_projection
from benchmarks.machine import describe_machine
from benchmarks.measuring import ROOT
from langmerge_jax.files import write_json

_CASES = ("knots_8b", "projection", "mergekit", "delta_8b", "growth")

_CASE = flags.DEFINE_multi_enum("case", list(_CASES), _CASES, "Which; all by default.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Of each timing.", lower_bound=1)
_SCRATCH = flags.DEFINE_string("scratch", "/tmp/bench", "Where large files go.")
_KEEP = flags.DEFINE_bool("keep", False, "Leave the inputs there for the next run.")
_LAYERS = flags.DEFINE_integer("layers", 32, "Of the 8B cases, for a try.", lower_bound=1)
_SMALL = flags.DEFINE_bool("small", False, "Small shapes in the other cases, for a try.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Where results go; benchmarks/merge.json, or for a try <scratch>/merge.json."
)


def main(_) -> None:
    # Its own folder there, which is removed after each case.
    scratch = pathlib.Path(_SCRATCH.value).resolve() / "langmerge"
    is_try = _SMALL.value or _LAYERS.value != 32
    default = scratch.with_name("merge.json") if is_try else ROOT / "benchmarks/merge.json"
    output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else default
    cases = {
        "knots_8b": functools.partial(merge_files.knots_8b, scratch, _LAYERS.value),
        "projection": functools.partial(merge_projection.projection, _SMALL.value),
        "mergekit": functools.partial(merge_files.mergekit, scratch, _SMALL.value),
        "delta_8b": functools.partial(merge_files.delta_8b, scratch, _LAYERS.value),
        "growth": functools.partial(merge_projection.growth, _SMALL.value),
    }
    for name in dict.fromkeys(_CASE.value):
        print(name, file=sys.stderr, flush=True)
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            section = cases[name](_REPEATS.value)
        finally:
            if not _KEEP.value:
                shutil.rmtree(scratch)
        machine = describe_machine("numpy", "torch", "peft", "mergekit")
        sections = json.loads(output.read_text()) if output.exists() else {}
        write_json(output, sections | {name: {"machine": machine} | section.json()})
        print(section.table(f"{name}, {os.cpu_count()} cores").text(), flush=True)
    print(f"written: {output}")


if __name__ == "__main__":
    app.run(main)
