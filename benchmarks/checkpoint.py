"""Weighs loading and exporting a model of Llama-3.2-1B's shape, and spreads it over devices.

  python -m benchmarks.checkpoint

makes random bfloat16 weights in three shards (2.5 GB), loads and exports them in processes of their
own, prints a table and writes benchmarks/checkpoint.json. The bar: host memory beyond the arrays is
at most 1.3 times the largest shard. The logits of eight simulated devices (two ways over inner
dimensions, four over heads) are compared with those of one.

Needs 6 GB of disk, and the extra `dev`.
"""

import contextlib
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl import app, flags
from flax import nnx

from benchmarks import measuring
from benchmarks.machine import describe_machine
from benchmarks.measuring import ROOT, Section
from langmerge_jax.demo.base import train_tokenizer
from langmerge_jax.files import write_json
from langmerge_jax.models.checkpoint import hf_shapes, load_base, load_tokenizer, save_base
from langmerge_jax.models.config import LlamaConfig, RopeScaling
from langmerge_jax.models.lora import without_adapters
from langmerge_jax.models.stacking import split_lora
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.tensorfiles import INDEX, TensorWriter, room_for

_SCRATCH = flags.DEFINE_string("scratch", "/tmp/bench", "Where the models go.")
_OUTPUT = flags.DEFINE_string("output", str(ROOT / "benchmarks/checkpoint.json"), "Results.")

ONE_B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
    tie_word_embeddings=True,
    max_position_embeddings=131_072,
)
FILES = 3


def main(_) -> None:
    scratch = pathlib.Path(_SCRATCH.value).resolve() / "one-b"
    directory, output = scratch / "base", scratch / "out"
    try:
        make(directory)
        largest = max(path.stat().st_size for path in directory.glob("*.safetensors"))
        section = Section(parameters=_parameters(), files=FILES, largest_shard=largest, repeats=1)
        _, found = measuring.call(weigh, str(directory), str(output), largest)
        for what in ("loading", "exporting"):
            section.note(f"{what}", found[what]["seconds"], "s")
            section.note(f"{what}, memory beyond the arrays", found[what]["extra"] / 1e9, "GB")
            share = found[what]["extra"] / largest
            section.note(f"{what}, share of the largest shard", share, most=1.3)
        section.note("tensors that came back to the bit", found["same"], least=1)
        eight = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
        _, one = measuring.call(logits, str(directory), 1, 1)
        _, many = measuring.call(logits, str(directory), 2, 4, XLA_FLAGS=eight.strip())
        apart = np.abs(np.array(one) - np.array(many)).max() / np.std(one)
        section.note("logits on eight devices, difference to one", apart, "std", most=1e-3)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(section.table("1B, loading and exporting").text())
    result = {"machine": describe_machine("flax")} | section.json()
    write_json(pathlib.Path(_OUTPUT.value), {"checkpoint": result})
    print(f"written: {_OUTPUT.value}")


def _parameters() -> int:
    return sum(int(np.prod(shape)) for shape in hf_shapes(ONE_B).values())


def make(directory: pathlib.Path) -> None:
    """Writes random weights, tensor by tensor."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shapes, places = hf_shapes(ONE_B), {}
    for number, names in enumerate(np.array_split(list(shapes), FILES), 1):
        file = f"model-{number:05d}-of-{FILES:05d}.safetensors"
        with TensorWriter(directory / file, header_room=room_for(map(str, names))) as writer:
            for name in map(str, names):
                values = rng.standard_normal(shapes[name], np.float32)
                values = 1 + 0.1 * values if "norm" in name else 0.03 * values
                writer.add(name, values.astype(ml_dtypes.bfloat16))
                places[name] = file
    write_json(directory / INDEX, {"metadata": {}, "weight_map": places})
    write_json(directory / "config.json", ONE_B.to_hf())
    train_tokenizer(["the text of the tokenizer matters not here"], 300).save_pretrained(directory)


def weigh(directory: str, output: str, shard_bytes: int) -> dict:
    """Memory and seconds of loading and exporting; what is known from before is not weighed."""
    mesh = make_mesh()
    load_tokenizer(pathlib.Path(directory))
    jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
    found = {}
    with _weighed(found, "loading"):
        base = load_base(directory, mesh=mesh, dtype=jnp.bfloat16)
    found["loading"]["extra"] -= sum(x.nbytes for x in jax.tree.leaves(base.params))
    with _weighed(found, "exporting"):
        save_base(
            pathlib.Path(output), base.params, base.config, base.tokenizer, shard_bytes=shard_bytes
        )
    again = load_base(output, mesh=mesh, dtype=jnp.bfloat16)
    pairs = zip(jax.tree.leaves(base.params), jax.tree.leaves(again.params), strict=True)
    found["same"] = float(np.mean([bool(jnp.array_equal(x, y)) for x, y in pairs]))
    return found


@contextlib.contextmanager
def _weighed(found: dict, what: str) -> Iterator[None]:
    before, most, done = _anonymous(), [_anonymous()], threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            most.append(max(most.pop(), _anonymous()))

    thread = threading.Thread(target=sample)
    thread.start()
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        done.set()
        thread.join()
    found[what] = {"seconds": seconds, "extra": most[0] - before}


def _anonymous() -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def logits(directory: str, fsdp: int, tensor: int) -> list[float]:
    """Some logits of sixteen tokens, in float32."""
    base = load_base(directory, mesh=make_mesh(data=1, fsdp=fsdp, tensor=tensor))
    graph, _ = split_lora(base.config, None, base.dtype, attention=base.attention)
    tokens = np.random.default_rng(1).integers(0, ONE_B.vocab_size, (1, 2, 16))

    @jax.jit
    def run(params, tokens):
        model = nnx.merge(graph, nnx.State({}), params)
        return model.logits(model(tokens, without_adapters())[:, :, -1])

    return np.asarray(run(base.params, tokens)).ravel()[::97].tolist()


if __name__ == "__main__":
    app.run(main)
