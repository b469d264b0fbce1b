"""The benchmark for a GPU runs where little is installed, and counts what it says it counts."""

import json
import math
import os
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gpu_journal import Journal, Missing, OutOfMemory
from benchmarks.gpu_merging import to_host
from benchmarks.gpu_parts import parts
from benchmarks.gpu_shape import EIGHT_B, TINY, for_device, running
from benchmarks.machine import one_device
from benchmarks.measuring import Section
from langmerge_jax.models.attention import Attention
from langmerge_jax.models.checkpoint import Base, hf_shapes
from langmerge_jax.models.config import from_hf
from tests.doors import ROOT

# What an image for GPUs with jax, flax, optax, orbax-checkpoint, safetensors and numpy lacks.
ABSENT = (
    *("grain", "datasets", "ml_collections", "transformers", "tokenizers", "huggingface_hub"),
    *("sklearn", "tensorflow_datasets", "rouge_score", "matplotlib", "tqdm", "jinja2"),
    *("tensorboardX", "threadpoolctl", "torch", "peft", "pandas", "pyarrow"),
)
PARTS = [
    *("limits", "weights", "correct", "train 16", "train 32", "five", "adapters", "knots 1"),
    *("ties fold", "knots 0.5", "decode 1", "128 by row", "decode 8", "decode 8 variants"),
    "128 remat",
]
# Those that there is a bar for, of an adapter set's life.
BARRED = ("train 512", "five", "knots 1", "ties fold", "decode 1", "8192 by row")


@pytest.fixture(scope="module")
def lacking(tmp_path_factory):
    """The environment of processes that cannot import what is absent from such an image."""
    directory = tmp_path_factory.mktemp("site")
    (directory / "sitecustomize.py").write_text(
        f"import sys\nfor name in {ABSENT}:\n    sys.modules[name] = None\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    # Most of it is compiling, and nothing here depends on how good the machine code is.
    flags = "--xla_backend_optimization_level=0"
    if jax.__version_info__ < (0, 11):  # Unknown since; until then it takes half of the time.
        flags += " --xla_cpu_use_fusion_emitters=false"
    return kept | {"PYTHONPATH": str(directory), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


@pytest.fixture(scope="module")
def tiny(lacking, tmp_path_factory):
    """What a tiny run wrote, and what it printed as result and besides."""
    for name in ABSENT:
        lacks = subprocess.run(
            [sys.executable, "-c", f"import {name}"], env=lacking, capture_output=True, check=False
        )
        assert lacks.returncode != 0, name
    output = tmp_path_factory.mktemp("gpu") / "found.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", f"--output={output}"]
    result = subprocess.run(
        [*command, f"--scratch={output.parent}"],
        cwd=ROOT,
        env=lacking,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert list(output.parent.iterdir()) == [output]
    return json.loads(output.read_text()), result.stdout, result.stderr


def value(part, name):
    return part["findings"][name]["value"]


def share(part, name, of):
    assert part["findings"][name]["share"]["of"] == of
    return part["findings"][name]["share"]["value"]


def test_every_part_is_measured(tiny):
    found, printed, besides = tiny
    assert list(found["parts"]) == PARTS
    assert {part["status"] for part in found["parts"].values()} == {"measured"}
    assert all(part["wall_seconds"] > 0 for part in found["parts"].values())
    assert all(x["met"] for x in found["parts"]["correct"]["findings"].values())
    assert {"device", "date", "jax", "jaxlib", "flax", "numpy"} <= found["machine"].keys()
    assert found["model"]["hidden_size"] == 64
    assert "No bars: they are for Llama-3.1-8B's shape on an NVIDIA H200." in printed
    # What only a CPU would need is missed aloud.
    assert "threadpoolctl is not installed" in besides


def test_one_table_of_80_columns_tells_all(tiny):
    found, printed, _ = tiny
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    for name, part in found["parts"].items():
        for what in part["findings"]:
            assert len(re.findall(rf"^{re.escape(f'{name}: {what}')}  ", printed, re.M)) == 1


def test_tokens_are_those_of_the_steps(tiny):
    parts = tiny[0]["parts"]
    for name, tokens in {
        "train 16": 8 * 16,
        "train 32": 8 * 32,
        "128 by row": 8 * 128,
        "128 remat": 8 * 128,
    }.items():
        assert parts[name]["settings"]["tokens_a_step"] == tokens
        made = value(parts[name], "tokens") * value(parts[name], "a step")
        assert made == pytest.approx(tokens, rel=1e-3)
    assert parts["128 by row"]["settings"]["parts"] == 8
    assert parts["128 remat"]["settings"]["parts"] == 1
    five = parts["five"]
    assert five["settings"]["parts"] == 1
    seconds = {who: value(five, f"{who}, a step") for who in ("in one", "one by one")}
    for who in seconds:
        made = value(five, f"{who}, tokens") * seconds[who]
        assert made == pytest.approx(5 * 8 * 16, rel=1e-3)
    faster = seconds["one by one"] / seconds["in one"]
    assert value(five, "times faster") == pytest.approx(faster, rel=1e-3)
    for name, rows in {"decode 1": 1, "decode 8": 8, "decode 8 variants": 8}.items():
        made = value(parts[name], "tokens") * value(parts[name], "a token")
        assert made == pytest.approx(rows, rel=1e-3)


def test_ways_to_take_a_step_agree(tiny):
    parts = tiny[0]["parts"]
    for name in ("five", "128 remat"):
        assert parts[name]["findings"]["gradient apart"]["met"]
    assert "gradient apart" not in parts["128 by row"]["findings"]
    # Two ways, which round in other places.
    assert value(parts["128 remat"], "gradient apart") > 0


def test_memory_holds_what_lies_there(tiny):
    parts = tiny[0]["parts"]
    weights = value(parts["weights"], "weights")
    # Factors and two moments of one adapter, float32.
    state = 3 * parts["adapters"]["settings"]["bytes_an_adapter"] / 1e9
    trained = ("train 16", "train 32", "128 by row", "128 remat")
    for what in ("measured memory", "compiled memory"):
        found = {name: value(parts[name], what) for name in trained}
        assert min(found.values()) > weights + state
        assert value(parts["five"], what) > weights + 5 * state
    assert found["train 16"] < found["train 32"]
    # A row at a time holds the activations of one.
    assert found["128 by row"] < found["128 remat"]


def test_flops_are_counted_by_hand(tiny):
    parts = tiny[0]["parts"]
    # Entries of a layer: q and o, k and v, and the three of the feed-forward, all 64 wide.
    q, kv, mlp = 64 * 64, 64 * 32, 64 * 64
    layer = 2 * q + 2 * kv + 3 * mlp
    factors = 4 * (5 * (64 + 64) + 2 * (64 + 32))
    for name, s in {"train 16": 16, "train 32": 32, "128 remat": 128}.items():
        # Two operations an entry forward and two backward, but none for what the first q, k and v
        # read; factors have a gradient of their own besides.
        weights = 2 * 4 * layer - 2 * (q + 2 * kv)
        lora = 2 * 6 * factors - 2 * 3 * 64 * 4
        head = 4 * 512 * 64
        # Of a row every position predicts the next, all but the last.
        pairs = s * (s + 1) // 2
        expected = 8 * (s * (weights + lora) + (s - 1) * head + pairs * 2 * 6 * 2 * 4 * 16)
        settings = parts[name]["settings"]
        assert settings["model_flops_a_step"] == expected
        rate = expected / value(parts[name], "a step")
        assert value(parts[name], "model FLOP/s") == pytest.approx(rate / 1e12, rel=1e-3)
        matmul = value(parts["limits"], "matmul") * 1e12
        for what in ("tokens", "model FLOP/s"):
            assert share(parts[name], what, "matmul") == pytest.approx(rate / matmul, rel=1e-3)
    # The forward pass of both layers, once more.
    again = 8 * 2 * (128 * (2 * layer + 2 * factors) + 128 * 129 // 2 * 2 * 2 * 4 * 16)
    assert parts["128 remat"]["settings"]["recomputed_flops_a_step"] == again
    assert parts["128 by row"]["settings"]["recomputed_flops_a_step"] == 0
    rate = (parts["128 remat"]["settings"]["model_flops_a_step"] + again) / value(
        parts["128 remat"], "a step"
    )
    assert value(parts["128 remat"], "with recomputed") == pytest.approx(rate / 1e12, rel=1e-3)


def test_bytes_are_counted_by_hand(tiny):
    parts = tiny[0]["parts"]
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 64
    # bfloat16, with the head and five norms and without the embeddings.
    weights = 2 * (2 * layer + 512 * 64 + 5 * 64)
    factors = 4 * 2 * 4 * (5 * (64 + 64) + 2 * (64 + 32))
    copy = value(parts["limits"], "copy") * 1e9
    for name, rows, adapters in (
        ("decode 1", 1, 0),
        ("decode 8", 8, 0),
        ("decode 8 variants", 8, 8),
    ):
        read = parts[name]["settings"]["bytes_a_token"]
        # Keys and values of two layers, two heads of 16, in 32 places.
        cache = rows * 32 * 2 * 2 * 2 * 16 * 2
        assert read == {"weights": weights, "adapters": adapters * factors, "cache": cache}
        rate = sum(read.values()) / value(parts[name], "a token")
        assert share(parts[name], "tokens", "copy") == pytest.approx(rate / copy, rel=1e-3)
        assert value(parts[name], "of limit") == pytest.approx(rate / copy, rel=1e-3)
    assert parts["adapters"]["settings"] == {"adapters": 5, "bytes_an_adapter": factors}
    # Five read and one written, of five times the rank where a module has so many directions.
    for name in ("knots 1", "knots 0.5"):
        across = value(parts[name], "over the link") * 1e9
        assert across == pytest.approx(10 * factors, rel=1e-3)
        rate = value(parts[name], "bytes moved") * 1e9 / value(parts[name], "warm")
        assert share(parts[name], "warm", "copy") == pytest.approx(rate / copy, rel=1e-3)
    deltas = 2 * layer
    fold = parts["ties fold"]
    assert value(fold, "over the link") * 1e9 == pytest.approx(5 * factors + 8 * deltas, rel=1e-3)


def test_the_large_shape_is_that_of_llama_8b():
    # The parameters that Meta gives for it: 8.03 billion.
    assert sum(map(math.prod, hf_shapes(EIGHT_B.config).values())) == 8_030_261_248
    published = {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    assert EIGHT_B.config == from_hf(published, "published")
    assert (EIGHT_B.rank, EIGHT_B.short, EIGHT_B.middle, EIGHT_B.long) == (64, 128, 512, 8192)


def test_what_goes_wrong_is_written_down_and_the_rest_goes_on(tmp_path, capsys):
    path = tmp_path / "found.json"
    journal = Journal(path, TINY, budget=60)
    # Before anything is measured, so that a path that cannot be written is known.
    assert json.loads(path.read_text())["parts"] == {}

    def too_large(section):
        section.note("before", 1)
        jnp.zeros(2**50).block_until_ready()

    def refused(section):
        raise OutOfMemory("8 rows need 70.0 GiB, 60.0 GiB are free")

    def broken(section):
        raise ZeroDivisionError("by nothing")

    def without(section):
        raise Missing("an earlier part left no base")

    def incorrect(section):
        section.note("attention", 0.5, most=0.1)
        section.note("warm", 11, "s", most=10)
        assert not section.attempt("loss", lambda: 1 / 0)
        assert section.attempt("LoRA", lambda: section.note("LoRA", 0.05, most=0.1))

    journal.take("too large", too_large)
    written = json.loads(path.read_text())["parts"]["too large"]
    assert written["status"] == "out of memory"
    assert str(2**52) in written["why"]
    assert written["findings"]["before"]["value"] == 1
    for name, part in (("refused", refused), ("broken", broken), ("without", without)):
        journal.take(name, part)
    journal.take("correct", incorrect)
    parts = json.loads(path.read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "too large": "out of memory",
        "refused": "out of memory",
        "broken": "failed",
        "without": "left out",
        "correct": "measured",
    }
    assert "70.0 GiB" in parts["refused"]["why"]
    assert "ZeroDivisionError: by nothing" in capsys.readouterr().err
    # Too slow is not wrong.
    assert journal.wrong() == ["broken", "correct: attention", "correct: loss fails"]
    assert parts["correct"]["findings"]["LoRA"]["met"]
    text = journal.table().text()
    assert re.search(r"^refused +out of memory ", text, re.M)
    assert "refused: 8 rows need 70.0 GiB, 60.0 GiB are free" in text
    assert "correct: loss: ZeroDivisionError: division by zero" in text


def test_no_part_begins_that_does_not_fit(tmp_path):
    start = time.monotonic() - 100
    journal = Journal(tmp_path / "found.json", TINY, budget=120, start=start)
    journal.take("late", lambda section: pytest.fail("has begun"), 21)
    assert journal.parts["late"]["status"] == "left out"
    assert "late: 100 s had passed, and it takes about 21 s" in journal.table().text()
    # Later ones that are shorter go on.
    journal.take("short", lambda section: None, 15)
    assert journal.parts["short"]["status"] == "measured"
    assert journal.wrong() == []


OVERRUN = """
import itertools, pathlib, sys
import jax
from benchmarks.gpu_journal import Journal
from benchmarks.gpu_shape import TINY

def part(section):
    for number in itertools.count():
        section.note(str(number % 100), 1)

jax.devices()
journal = Journal(pathlib.Path(sys.argv[1]), TINY, budget=60)
with journal.ended_after(3, ["done", "endless", "after"]):
    journal.take("done", lambda section: section.note("first", 1))
    journal.take("endless", part)
"""


def test_a_part_without_an_end_is_ended_and_all_is_told(lacking, tmp_path):
    path = tmp_path / "found.json"
    command = [sys.executable, "-c", OVERRUN, str(path)]
    result = subprocess.run(
        command, cwd=ROOT, env=lacking, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    parts = json.loads(path.read_text())["parts"]
    ways = {name: part["status"] for name, part in parts.items()}
    assert ways == {"done": "measured", "endless": "cut off", "after": "left out"}
    assert parts["endless"]["findings"]["0"]["value"] == 1
    assert parts["endless"]["wall_seconds"] < 10
    for name in ("done: first", "endless: 99", "endless", "after"):
        assert re.search(rf"^{name}  ", result.stdout, re.M)
    assert "error: endless; the reasons are above" in result.stderr


def test_what_has_a_bar_comes_first_and_fits(tmp_path):
    found = parts(EIGHT_B, one_device(), tmp_path)
    # jax, its imports and the device, before anything is begun.
    passed, begun = 25, []
    for name, (seconds, _) in found.items():
        if passed + seconds <= 570:
            passed += seconds
            begun.append(name)
    assert set(BARRED) <= set(begun)
    # What those go on from.
    assert begun[:7] == [*("limits", "weights", "correct"), "train 128", "train 512", *PARTS[5:7]]


def test_bars_are_for_one_device():
    assert for_device(EIGHT_B, "NVIDIA H200") == EIGHT_B
    assert for_device(EIGHT_B, "NVIDIA H100 80GB HBM3").bars == {}


def test_a_kernel_that_fails_is_replaced(capsys):
    # cuDNN's, on a CPU.
    section = Section()
    found = running(section, TINY, Attention("cudnn", one_device()))
    assert found == Attention("blockwise", one_device())
    assert section.findings["cudnn at 64 fails"].met is False
    assert section.remarks[-1] == "attention is blockwise instead"
    assert "Traceback" in capsys.readouterr().err
    section = Section()
    assert running(section, TINY, Attention("xla")) == Attention("xla")
    assert section.findings == {}


def test_merges_go_on_without_the_five():
    mesh, section = one_device(), Section()
    base = Base("random", TINY.config, None, None, mesh, jnp.dtype("bfloat16"), Attention())
    found = to_host(section, TINY, base, None)
    assert section.remarks == ["random factors, as no five were trained"]
    assert set(found) == {"de", "en", "fr", "ja", "zh"}
    shapes = hf_shapes(TINY.config)
    for adapter in found.values():
        assert len(adapter.modules) == 2 * 7
        for module, factors in adapter.modules.items():
            rows, columns = shapes[f"{module}.weight"]
            assert (factors.b.shape, factors.a.shape) == ((rows, 4), (4, columns))
    delta = {name: adapter.modules[module].delta() for name, adapter in found.items()}
    assert np.abs(delta["de"]).max() > 0
    assert not np.array_equal(delta["de"], delta["zh"])


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--notiny", "error: jax finds no GPU here; --tiny goes the same way on a CPU"),
        ("--output=/dev/null/found.json", "nothing was measured"),
    ],
)
def test_what_cannot_run_is_refused_in_a_line(lacking, flag, said):
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--tiny", flag],
        cwd=ROOT,
        env=lacking,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in result.stderr
