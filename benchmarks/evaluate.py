"""Times answers of eight variants in one pass beside those of one, and BERTScore beside its peer.

  python -m benchmarks.evaluate --base=runs/demo/base

prints a table for every case and writes benchmarks/evaluate.json:

  answer_choice_demo, answer_generation_demo   the demo's base (`make demo` makes it)
  answer_choice_30m, answer_generation_30m     a Llama of 30 million random float32 weights
  bertscore_sentences, bertscore_paragraphs    see benchmarks/bertscore.py

Eight random adapters of rank 8 answer the same prompts, in one process over one base, by the
likeliest of three options or in 16 new tokens. A row is one prompt with one variant; both have as
many rows in a batch. Everything is loaded and compiled before, and the two take turns.

Needs the extra `dev`.
"""

import os
import pathlib
import shutil
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import app, flags

from benchmarks import bertscore, measuring
from benchmarks.machine import describe_machine
from benchmarks.measuring import ROOT, Section
from benchmarks.random_base import make_random
from langmerge_jax.adapters import Adapter
from langmerge_jax.evaluation.predict import (
    ChoiceScorer,
    Generator,
    Weights,
    batches,
    of_adapters,
    rows_at_once,
)
from langmerge_jax.files import write_json
from langmerge_jax.models.checkpoint import Base, load_base
from langmerge_jax.models.lora import LoraSpec
from langmerge_jax.models.stacking import init_lora, swap_leading, unstack
from langmerge_jax.parallel.mesh import make_mesh

_BASE = flags.DEFINE_string("base", "runs/demo/base", "The demo's base model.")
_PROMPTS = flags.DEFINE_integer("prompts", 512, "That each variant answers.", lower_bound=1)
_PAIRS = flags.DEFINE_integer("pairs", 240, "Of texts, for BERTScore.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Of each timing.", lower_bound=1)
_SCRATCH = flags.DEFINE_string("scratch", "/tmp/bench", "Where random models go.")
_OUTPUT = flags.DEFINE_string("output", str(ROOT / "benchmarks/evaluate.json"), "Results.")

VARIANTS, RANK, ROWS, LENGTH, NEW = 8, 8, 128, 32, 16


def main(_) -> None:
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    scratch = pathlib.Path(_SCRATCH.value).resolve()
    make_random(scratch / "llama-30m", pathlib.Path(_BASE.value))
    found = {}
    for size, directory in (("demo", _BASE.value), ("30m", str(scratch / "llama-30m"))):
        base = load_base(directory, mesh=make_mesh())
        # The larger one is no slower for fewer prompts, only sooner done.
        given = prompts(base, _PROMPTS.value if size == "demo" else _PROMPTS.value // 4)
        for name, make in (("choice", choice), ("generation", generation)):
            found[f"answer_{name}_{size}"] = compare(base, given, make(base), size == "demo")
    shutil.rmtree(scratch / "llama-30m")
    found |= dict(bertscore.sections(scratch, _PAIRS.value, _REPEATS.value))
    machine = describe_machine("torch", "transformers", "bert-score")
    for name, section in found.items():
        print(section.table(f"{name}, {os.cpu_count()} cores").text(), flush=True)
    write_json(
        pathlib.Path(_OUTPUT.value),
        {name: {"machine": machine} | section.json() for name, section in found.items()},
    )
    print(f"written: {_OUTPUT.value}")


def prompts(base: Base, count: int) -> list[list[int]]:
    """Prompts of 25 to 32 tokens: of one length once padded."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(25, LENGTH + 1, count)
    return [rng.integers(5, base.config.vocab_size, n).tolist() for n in lengths]


def adapters(base: Base, ranks: Sequence[int]) -> list[Adapter]:
    """Random adapters that change every projection."""
    targets, rng, found = tuple(base.config.projections()), np.random.default_rng(0), []
    for seed, rank in enumerate(ranks):
        lora = swap_leading(init_lora(base.config, LoraSpec(1, rank, targets), [seed]))
        lora = jax.tree.map(lambda x: rng.normal(0, 0.02, x.shape).astype(np.float32), lora)
        found += unstack(lora, names=[str(seed)], scale=1.0, base=base.name).values()
    return found


Answer = Callable[[list[list[int]], Weights], object]


def choice(base: Base) -> tuple[Answer, Callable[[], int]]:
    """Answers by three options of one to three tokens, and how many programs that compiled."""
    scorer = ChoiceScorer(base, [[5], [6, 7], [8, 9, 10]], ROWS, (LENGTH,))
    return scorer, lambda: sum(x._cache_size() for x in scorer._programs.values())


def generation(base: Base) -> tuple[Answer, Callable[[], int]]:
    """Answers by generation, likewise."""
    generator = Generator(base, ROWS, NEW)
    return generator, lambda: sum(x.compiled for x in generator._decoders.values())


def compare(
    base: Base, given: list[list[int]], how: tuple[Answer, Callable[[], int]], mixed: bool
) -> Section:
    """Rows a second of eight variants together, of one, and if asked for of eight of two ranks."""
    answer, compiled = how
    section = Section(
        variants=VARIANTS,
        rank=RANK,
        rows=ROWS,
        prompts=len(given),
        dtype="float32",
        devices=jax.device_count(),
        repeats=_REPEATS.value,
    )
    eight = adapters(base, [RANK] * VARIANTS)
    sets = {"one": [of_adapters(base, eight[:1])], "eight together": [of_adapters(base, eight)]}
    if mixed:
        half = VARIANTS // 2
        apart = adapters(base, [RANK] * half + [2 * RANK] * half)
        by_rank = [of_adapters(base, apart[:half]), of_adapters(base, apart[half:])]
        sets["eight of two ranks, by rank"] = by_rank
        sets["eight of two ranks, padded"] = [of_adapters(base, apart)]

    def run(weights: Sequence[Weights]) -> Callable[[], None]:
        def answer_all() -> None:
            for some in weights:
                for rows in batches(given, rows_at_once(base, ROWS, some.n)):
                    answer([given[i] for i in rows], some)

        return answer_all

    contestants = {name: run(weights) for name, weights in sets.items()}
    before = {}
    for name, contestant in contestants.items():
        start = compiled()
        contestant()
        before[name] = compiled() - start
    section.note("programs compiled for one", before["one"])
    section.note("programs compiled for eight", before["eight together"], most=before["one"])
    seconds = measuring.interleaved(contestants, _REPEATS.value)
    speed = {}
    for name, taken in seconds.items():
        rows = len(given) * sum(some.n for some in sets[name])
        speed[name] = rows / section.median(f"{name} warm", taken)
        section.note(f"{name}, rows a second", speed[name])
    section.note(
        "eight together, of the speed of one", speed["eight together"] / speed["one"], least=0.95
    )
    if mixed:
        ranks = speed["eight of two ranks, by rank"] / speed["eight of two ranks, padded"]
        section.note("two ranks, by rank against padded", ranks, "x")
    return section


if __name__ == "__main__":
    app.run(main)
