"""Writes docs/benchmarks.md from the results in benchmarks/, those of `RESULTS`.

  .venv-test/bin/python -m docs.from_benchmarks

tests/test_merging_page.py checks that the committed page is what this makes.
"""

import json
import pathlib
from typing import Any

from langmerge_jax.reporting.table import Cell, Table

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = [
    ROOT / "benchmarks" / f"{name}.json"
    for name in ("merge", "checkpoint", "generate", "train", "evaluate")
]

INTRODUCTION = """\
# Benchmarks

<!-- Made by `python -m docs.from_benchmarks` from benchmarks/*.json; change it there. -->

`python -m benchmarks.merge`, `.checkpoint`, `.generate`, `.train` and `.evaluate` time our work
beside the fastest there is to compare with, in one run, with the outputs compared before. Cold is a
process of its own from its start to its end; warm is the same work with everything compiled. A bar
is what was asked for; where it is not met, it says NO.

`python -m benchmarks.gpu` is for one GPU, without network and with random weights of the shape of
Llama-3.1-8B: training up to 8192 tokens a row, merging, folding and decoding, each as a share of
what the chip's products and copies reach in the same run, after attention, loss, LoRA and KnOTS
have been compared with float64. It begins nothing that it reckons not to end within 570 seconds of
its start, is ended after 590, and names what it left out. With `--tiny` a CPU goes the same way. It
has not been run on a GPU yet, so there is no figure of one, and how long its parts take is reckoned
too.

What follows is expected to fall short first on an H200, for whoever runs it there to test.
Generation with one row copies each layer's weights out of the stack that is scanned, unless XLA
reads them in place: `XLA_FLAGS=--xla_gpu_enable_dynamic_slice_fusion=true` tries that, which
jaxlib 0.10.2 leaves off. KnOTS takes Jacobi SVDs in float64 of 224 modules, one after another,
reckoned at 8 to 14 seconds where 10 are asked for. And 8 rows of 8192 tokens with rematerialisation
would need 686 TFLOP/s of products for the 12,500 tokens a second that are asked of them row by row.
"""

CASES = {
    "knots_8b": """\
TIES-KnOTS at the shape of Llama-3.1-8B: five adapters of rank 64 on all seven projections, in
bfloat16, from files to a file. The bare calls are the QRs, SVDs and products of a textbook KnOTS
alone, with no trim, no files and no card. Asked for are 90 and 180 seconds, or on a noisy machine
1.3 times the bare calls and a copy of the files.""",
    "projection": """\
One 4096 x 4096 projection, five adapters of rank 64, beside KnOTS' own procedure (our
transcription, a full SVD in float64) and PEFT.""",
    "mergekit": """\
From five adapters and a base of half a billion float32 weights to the full merged model, beside
mergekit's `ties` from full models.""",
    "delta_8b": "`ties` over all deltas of the 8B shape, folded into a synthetic bfloat16 base.",
    "growth": "2 to 50 adapters of rank 16 on one 4096 x 4096 projection.",
    "checkpoint": """\
A random bfloat16 model of Llama-3.2-1B's shape in three shards, loaded and exported; its logits on
eight simulated devices beside those on one.""",
    "generate_demo": """\
Greedy decoding of 32 prompts, 64 tokens each, with the demo's base, beside transformers'
`generate` with its cache. The limit is what reading weights and cache once a token would take.""",
    "generate_30m": "The same with 30 million random weights.",
    "train_demo": """\
A step of training one adapter of the demo, 8 rows of 40 tokens, beside transformers, PEFT and
torch's fused AdamW with the same adapter, batches and learning rates. Ours cuts the CPU into a
device a core, as the demo does. The bar is held against the faster of torch's two:
operations this small often gain nothing from a second thread.""",
    "train_30m": "The same with 30 million random weights and 128 tokens a row.",
    "five_together": """\
Five adapters of the demo in one program, 8 rows each, beside the same steps of one adapter after
another.""",
    "answer_choice_demo": """\
Answers of eight adapters of rank 8 to the same prompts, by the likeliest of three options, in one
pass over the demo's base; beside the same of one adapter. A row is a prompt with a variant; both
have 128 in a batch. Two ranks are batched by rank; beside it, padded to the higher.""",
    "answer_generation_demo": "The same with 16 new tokens, greedily.",
    "answer_choice_30m": """\
By choice, with 30 million random weights. Eight lose by how XLA lays the program out on a CPU: it
computes the base's product over all rows as one matrix, those of the adapters group by group, and
what both read (the output of a norm, of attention, the gate times up) once for each of the two
shapes, where for one adapter the shapes are the same. The compiled program says so; an optimization
barrier in front, which the compiler drops, and einsums over [g, b s, i] leave it as it is.""",
    "answer_generation_30m": "By generation, with 30 million random weights.",
    "bertscore_sentences": """\
BERTScore of pairs of one sentence, in six languages, beside the package bert-score. The encoder is
a random one of 6 layers of width 384, in float32. Ours cuts the CPU into a device a core.""",
    "bertscore_paragraphs": "The same of 3 to 8 sentences.",
}


def page() -> str:
    """Returns docs/benchmarks.md."""
    sections = {}
    for path in RESULTS:
        if path.exists():
            sections |= json.loads(path.read_text(encoding="utf-8"))
    lines = [INTRODUCTION]
    for name, text in CASES.items():
        lines += [f"## `{name}`", "", text, ""]
        if name in sections:
            lines += [_section(sections[name]), ""]
        else:
            lines += ["Not run at full size yet.", ""]
    return "\n".join(lines)


def _section(section: dict[str, Any]) -> str:
    rows = {name: _cells(finding) for name, finding in section["findings"].items()}
    machine = section["machine"]
    counts = {len(x) for name, x in section["seconds"].items() if name in section["findings"]}
    most = max(counts, default=1)
    taken = "one run" if most == 1 else f"medians of {'up to ' * (len(counts) > 1)}{most}"
    note = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['date']}; jax {machine['jax']}; {taken}."
    )
    return Table("", "", ["measured", "bar", "met"], rows, [note]).markdown().strip("# \n")


def _cells(finding: dict[str, Any]) -> list[Cell]:
    told = Cell(_said(finding["value"], finding["unit"]))
    for side, sign in (("least", ">="), ("most", "<=")):
        if side in finding:
            bar = Cell(f"{sign} {_said(finding[side], finding['unit'])}")
            return [told, bar, Cell("yes" if finding["met"] else "NO")]
    return [told, Cell("-"), Cell("-")]


def _said(value: float, unit: str) -> str:
    number = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{number} {unit}".strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
