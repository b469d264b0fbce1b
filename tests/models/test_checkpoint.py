"""Base models in and out: shards, refusals, memory, and arrays on eight devices."""

import json
import os
import subprocess
import sys

import llama_models
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import load_base, save_base, stop_tokens
from langmerge_jax.parallel.mesh import make_mesh

FIELDS = llama_models.VARIANTS["qwen3 with biases"]


@pytest.fixture
def make(tmp_path, tokenizer):
    """Writes a random checkpoint, with some tensors changed; None removes one."""

    def make(changes=None, *, fields=FIELDS, dtype=np.float32, files=1, name="base"):
        directory = llama_models.checkpoint(tmp_path / name, fields, dtype=dtype, files=files)
        tokenizer.save_pretrained(directory)
        if changes:
            tensors = llama_models.weights(fields, dtype=dtype) | changes
            llama_models.save(directory, {k: v for k, v in tensors.items() if v is not None})
        return directory

    return make


def load(directory, **options):
    return load_base(str(directory), mesh=make_mesh(), **options)


def same(found, expected):
    for (path, x), (_, y) in zip(
        nnx.to_flat_state(found), nnx.to_flat_state(expected), strict=True
    ):
        np.testing.assert_array_equal(x[...], y[...], err_msg=str(path))


@pytest.mark.parametrize("name", llama_models.VARIANTS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_is_read_is_written_again_to_the_bit(name, dtype, make, tmp_path):
    fields = llama_models.VARIANTS[name]
    directory = make(fields=fields, dtype=dtype, files=3)
    base = load(directory, dtype=dtype)
    # Some thirty tensors a file.
    save_base(tmp_path / "out", base.params, base.config, base.tokenizer, shard_bytes=40_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    found = {}
    for file in files:
        tensors = safetensors.numpy.load_file(tmp_path / "out" / file)
        assert set(tensors) == {n for n, place in index["weight_map"].items() if place == file}
        assert sum(x.nbytes for x in tensors.values()) <= 40_000
        found |= tensors
    expected = llama_models.weights(fields, dtype=dtype)
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in expected.values())
    assert found.keys() == expected.keys()
    for tensor, value in expected.items():
        np.testing.assert_array_equal(found[tensor], value, err_msg=tensor)
    again = load(tmp_path / "out", dtype=dtype)
    assert again.config == base.config
    same(again.params, base.params)


def test_transformers_loads_what_is_written(make, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    for name, fields in llama_models.VARIANTS.items():
        directory = make(fields=fields, name=name)
        base = load(directory)
        output = tmp_path / f"{name} out"
        save_base(output, base.params, base.config, base.tokenizer, shard_bytes=40_000)
        tokens = llama_models.tokens(fields)
        expected = llama_models.logits_of(llama_models.model_of(directory), tokens)
        found = llama_models.logits_of(llama_models.model_of(output), tokens)
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_weights_are_converted_to_the_type_of_the_computation(make):
    wide = llama_models.weights(FIELDS)["model.layers.1.mlp.up_proj.weight"]
    base = load(make(), dtype=ml_dtypes.bfloat16)
    found = base.params["layers"]["mlp"]["up_proj"]["kernel"][...][1]
    np.testing.assert_array_equal(found, wide.T.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.norm.weight": None}, "tensor 'model.norm.weight' is missing"),
        (
            {f"model.layers.1.mlp.{x}_proj.weight": None for x in ("up", "gate", "down")}
            | {"model.layers.0.self_attn.q_norm.weight": None},
            r"tensors 'model.layers.0.self_attn.q_norm.weight', .* and 1 more are missing",
        ),
        (
            {"model.layers.0.mlp.up_proj.bias": np.zeros(48, np.float32)},
            "tensor 'model.layers.0.mlp.up_proj.bias' is not part of the model",
        ),
        (
            {"model.layers.0.mlp.up_proj.weight": np.zeros((48, 31), np.float32)},
            r"up_proj.weight has shape \[48, 31\], config.json asks for \[48, 32\]",
        ),
        (
            {"model.layers.0.mlp.up_proj.weight": np.zeros((48, 32), np.int8)},
            r"up_proj.weight is quantised \(int8\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes, words, make):
    with pytest.raises(InputError, match=words):
        load(make(changes))


def test_harmless_leftovers_are_passed_over(make):
    """Buffers of old checkpoints, and the head of a model that ties it."""
    fields = llama_models.VARIANTS["llama 3.2, tied"]
    changes = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
        "lm_head.weight": np.zeros((96, 32), np.float32),
    }
    same(load(make(changes, fields=fields, name="a")).params, load(make(fields=fields)).params)


def test_truncated_and_missing_shards_are_named(make):
    directory = make(files=3)
    shard = directory / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=rf"{shard.name}: .*truncated"):
        load(directory)
    shard.unlink()
    with pytest.raises(InputError, match=rf"{shard.name}: cannot be read"):
        load(directory)


def test_all_tokens_that_end_an_answer_are_found(make):
    directory = make()
    end = load(directory).tokenizer.eos_token_id
    assert stop_tokens(load(directory)) == [end]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert stop_tokens(load(directory)) == sorted({7, 9, end})
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert stop_tokens(load(directory)) == sorted({7, end})


# A process of its own: what it holds beyond the arrays is measured at the peak.
WEIGHED = """
import json, pathlib, sys, threading
import jax, jax.numpy as jnp
from langmerge_jax.models.checkpoint import load_base, load_tokenizer, save_base
from langmerge_jax.parallel.mesh import make_mesh

def anonymous():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("RssAnon"))

class Peak:
    def __enter__(self):
        self.start = self.most = anonymous()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
        return self
    def sample(self):
        while not self.done.wait(0.002):
            self.most = max(self.most, anonymous())
    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.extra = self.most - self.start

directory, output, shard_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
mesh = make_mesh()
load_tokenizer(pathlib.Path(directory))  # Its imports and the compiler's are not weighed.
jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
with Peak() as loading:
    base = load_base(directory, mesh=mesh, dtype=jnp.bfloat16)
arrays = sum(x.nbytes for x in jax.tree.leaves(base.params))
with Peak() as saving:
    save_base(pathlib.Path(output), base.params, base.config, base.tokenizer,
              shard_bytes=shard_bytes)
print(json.dumps({"arrays": arrays, "loading": loading.extra, "saving": saving.extra}))
"""


def test_memory_beyond_the_arrays_is_below_the_largest_shard(tmp_path, tokenizer):
    """0.3 billion parameters in three shards."""
    fields = llama_models.VARIANTS["llama 3.2, tied"] | {
        "vocab_size": 32_000,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 64,
    }
    # One random row everywhere: what the values are matters not here, and drawing them is slow.
    row = np.random.default_rng(0).normal(size=4096).astype(ml_dtypes.bfloat16)
    tensors = {
        name: np.broadcast_to(row[: shape[-1]], shape).copy()
        for name, shape in llama_models.shapes(fields).items()
    }
    directory = tmp_path / "base"
    directory.mkdir()
    llama_models.save(directory, tensors, files=3)
    (directory / "config.json").write_text(json.dumps(fields))
    tokenizer.save_pretrained(directory)
    largest = max(path.stat().st_size for path in directory.glob("*.safetensors"))
    del tensors
    result = subprocess.run(
        [sys.executable, "-c", WEIGHED, str(directory), str(tmp_path / "out"), str(largest)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["arrays"] > 2 * largest
    assert found["loading"] - found["arrays"] < 1.3 * largest, found
    assert found["saving"] < 1.3 * largest, found


SHARDED = """
import sys
import jax, numpy as np
from langmerge_jax.models.checkpoint import load_base
from langmerge_jax.models.decoding import Decoder
from langmerge_jax.parallel.mesh import make_mesh
from tests.models.test_llama_parity import our_logits

assert jax.device_count() == 8
tokens = np.load(sys.argv[2])
base = load_base(sys.argv[1], mesh=make_mesh(data=2, fsdp=2, tensor=2), attention=sys.argv[4])
kernel = base.params["layers"]["mlp"]["down_proj"]["kernel"][...]
assert kernel.addressable_shards[0].data.size * 4 == kernel.size, kernel.sharding
decoder = Decoder(base, rows=4)
greedy = decoder([row[:n].tolist() for row, n in zip(tokens, (5, 9, 30, 17))], max_new_tokens=20)
assert decoder.compiled == 2, decoder.compiled
np.savez(sys.argv[3], logits=our_logits(base, tokens[None]), greedy=np.array(greedy))
"""


@pytest.mark.parametrize("attention", ["blockwise", "splash"])
def test_eight_devices_give_the_logits_and_the_text_of_one(attention, make, tmp_path):
    """Two ways over rows, two over inner dimensions, two over heads."""
    from langmerge_jax.models.decoding import Decoder
    from tests.models.test_llama_parity import our_logits

    directory = make(files=2)
    tokens = llama_models.tokens(FIELDS, rows=4, length=40)
    np.save(tmp_path / "tokens.npy", tokens)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    output = tmp_path / "found.npz"
    given = [str(directory), str(tmp_path / "tokens.npy"), str(output), attention]
    root = str(llama_models.GOLDEN.parents[2])
    oracles = str(llama_models.GOLDEN.parent)
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, *given],
        env=os.environ
        | {"XLA_FLAGS": flags.strip(), "PYTHONPATH": os.pathsep.join([root, oracles])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = np.load(output)
    base = load(directory)
    np.testing.assert_allclose(found["logits"], our_logits(base, tokens[None]), rtol=0, atol=2e-5)
    prompts = [row[:n].tolist() for row, n in zip(tokens, (5, 9, 30, 17), strict=True)]
    greedy = Decoder(base, rows=4)(prompts, max_new_tokens=20)
    assert found["greedy"].tolist() == greedy
