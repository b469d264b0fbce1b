"""Times generation beside transformers' `generate`, batch 32 on all cores of the CPU.

  python -m benchmarks.generate --base=runs/demo/base

prints a table for every case and writes benchmarks/generate.json:

  generate_demo  the demo's base (`make demo` makes it), prompts from its own tokens
  generate_30m   a Llama of 30 million random float32 weights

Cold is a process of its own, from its start with imports, loading and compiling to the last token;
warm is the same work with everything loaded and compiled, the two taking turns. Greedy in float32,
with the tokens compared. The limit is the time to read weights and cache once a token, at the
bandwidth of a plain sum over a large array in the same run.

Needs the extra `dev`.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import measuring
from benchmarks.machine import describe_machine
from benchmarks.measuring import ROOT, Section
from benchmarks.random_base import make_random
from langmerge_jax.files import write_json
from langmerge_jax.models.checkpoint import load_base
from langmerge_jax.models.decoding import Decoder
from langmerge_jax.parallel.mesh import make_mesh

_BASE = flags.DEFINE_string("base", "runs/demo/base", "The demo's base model.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Of each timing.", lower_bound=1)
_SCRATCH = flags.DEFINE_string("scratch", "/tmp/bench", "Where the random model goes.")
_OUTPUT = flags.DEFINE_string("output", str(ROOT / "benchmarks/generate.json"), "Results.")

ROWS, LONGEST, NEW = 32, 24, 64


def main(_) -> None:
    random = pathlib.Path(_SCRATCH.value).resolve() / "llama-30m"
    make_random(random, pathlib.Path(_BASE.value))
    sections = {}
    for name, directory, bars in (
        ("generate_demo", _BASE.value, {"least": 3}),
        ("generate_30m", str(random), {}),
    ):
        section = compare(directory, bars)
        sections[name] = {"machine": describe_machine("torch", "transformers")} | section.json()
        print(section.table(f"{name}, {os.cpu_count()} cores").text(), flush=True)
    shutil.rmtree(random)
    write_json(pathlib.Path(_OUTPUT.value), sections)
    print(f"written: {_OUTPUT.value}")


def prompts(directory: str) -> list[list[int]]:
    """Prompts of 8 to 24 tokens."""
    fields = json.loads((pathlib.Path(directory) / "config.json").read_text())
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, LONGEST + 1, ROWS)
    return [rng.integers(5, fields["vocab_size"], n).tolist() for n in lengths]


def ours(directory: str) -> Callable[[], list[list[int]]]:
    """Our generation, ready to run."""
    decoder, given = Decoder(load_base(directory, mesh=make_mesh()), ROWS), prompts(directory)
    return lambda: decoder(given, max_new_tokens=NEW)


def theirs(directory: str) -> Callable[[], list[list[int]]]:
    """That of transformers: prompts padded at the front, a cache, no gradients."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    given = prompts(directory)
    longest = max(map(len, given))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in given])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in given])

    def run() -> list[list[int]]:
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return found[:, longest:].tolist()

    return run


def once(who: str, directory: str) -> int:
    """One generation in a process of its own."""
    return len({"ours": ours, "theirs": theirs}[who](directory)())


def compare(directory: str, bars: dict[str, float]) -> Section:
    """Tokens a second of both, cold and warm, and the limit."""
    section = Section(rows=ROWS, new_tokens=NEW, dtype="float32", repeats=_REPEATS.value)
    contestants = {"ours": ours(directory), "transformers": theirs(directory)}
    tokens = {name: np.array(run()) for name, run in contestants.items()}
    same = np.mean(np.all(tokens["ours"] == tokens["transformers"], axis=1))
    section.note("rows with the same tokens", float(same), least=0.9)
    seconds = measuring.interleaved(contestants, _REPEATS.value)
    warm = {name: section.median(f"{name} warm", x) for name, x in seconds.items()}
    cold = {
        name: section.median(
            f"{name} cold",
            [measuring.call(once, who, directory)[0].seconds for _ in range(_REPEATS.value)],
        )
        for name, who in (("ours", "ours"), ("transformers", "theirs"))
    }
    for name, taken in warm.items():
        section.note(f"{name} warm, tokens a second", ROWS * NEW / taken)
    section.note("times faster warm", warm["transformers"] / warm["ours"], "x", **bars)
    section.note("times faster cold", cold["transformers"] / cold["ours"], "x")
    _against_limit(section, directory, warm["ours"])
    return section


def _against_limit(section: Section, directory: str, taken: float) -> None:
    base = load_base(directory, mesh=make_mesh())
    config = base.config
    weights = sum(x.nbytes for x in jax.tree.leaves(base.params))
    a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    cache = ROWS * (LONGEST + NEW / 2) * a_token
    array = jnp.ones(2**28)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    rate = array.nbytes / min(
        measuring.timed(lambda: total(array).block_until_ready()) for _ in range(5)
    )
    section.note("bandwidth of a sum", rate / 1e9, "GB/s")
    limit = NEW * (weights + cache) / rate
    section.note("time to read weights and cache", limit, "s")
    section.note("share of that limit", limit / taken)


if __name__ == "__main__":
    app.run(main)
