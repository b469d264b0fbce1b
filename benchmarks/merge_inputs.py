"""Adapters and base models of random values, in memory and on disk, for timing merges.

Values are random where they decide what a merge does (the factors), and a pool of random values
again and again where they only have to be there (the base).
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from langmerge_jax.adapters import Adapter, Factors, write_adapter
from langmerge_jax.files import finished_directory
from langmerge_jax.tensorfiles import TensorWriter, map_tensors, room_for

NAMES = ["de", "en", "fr", "ja", "zh"]

_POOL = 2**24
_BASE_RMS = 0.02
# Of a delta, about what fine-tuning leaves; a hundredth of the weights.
_DELTA_RMS = 3e-4


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A Llama's. `vocabulary` 0 leaves embedding and head out."""

    hidden: int
    kv: int
    mlp: int
    layers: int
    vocabulary: int

    def linear(self) -> dict[str, tuple[int, int]]:
        """`(out, in)` of the seven projections of a layer."""
        h, k, m = self.hidden, self.kv, self.mlp
        attention = {"q": (h, h), "k": (k, h), "v": (k, h), "o": (h, h)}
        mlp = {"gate": (m, h), "up": (m, h), "down": (h, m)}
        return {f"self_attn.{x}_proj": s for x, s in attention.items()} | {
            f"mlp.{x}_proj": s for x, s in mlp.items()
        }

    def modules(self) -> dict[str, tuple[int, int]]:
        """`(out, in)` of every projection, by path."""
        return {
            f"model.layers.{layer}.{name}": shape
            for layer in range(self.layers)
            for name, shape in self.linear().items()
        }

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor of the model and its shape."""
        if self.vocabulary:
            yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            for name, shape in self.linear().items():
                yield f"model.layers.{layer}.{name}.weight", shape
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"model.layers.{layer}.{name}.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        if self.vocabulary:
            yield "lm_head.weight", (self.vocabulary, self.hidden)

    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for _, shape in self.weights())

    def config(self, dtype: str) -> dict[str, Any]:
        """config.json, with heads 64 or 128 wide."""
        head = 128 if self.hidden >= 4096 else 64
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // head,
            "num_key_value_heads": self.kv // head,
            "head_dim": head,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
        }


LLAMA_8B = Sizes(4096, 1024, 14336, 32, 128256)
HALF_B = Sizes(1024, 512, 4096, 28, 32000)


def random_factors(shape: tuple[int, int], rank: int, rng: np.random.Generator) -> Factors:
    """Factors of a delta `(out, in)` with entries of about 3e-4, float32."""
    out_features, in_features = shape
    a = rng.standard_normal((rank, in_features), dtype=np.float32)
    b = rng.standard_normal((out_features, rank), dtype=np.float32)
    return Factors(a / np.float32(rank**0.5), b * np.float32(_DELTA_RMS), scale=1.0)


def random_adapters(shape: tuple[int, int], count: int, rank: int) -> dict[str, Adapter]:
    """Adapters of one projection."""
    return {
        f"adapter{i:02d}": Adapter({"proj": random_factors(shape, rank, np.random.default_rng(i))})
        for i in range(count)
    }


def adapters_on_disk(
    directory: pathlib.Path, sizes: Sizes, rank: int, dtype: np.typing.DTypeLike
) -> dict[str, pathlib.Path]:
    """Five adapters of all projections; those that are there already are taken as they are."""
    found = {}
    for seed, name in enumerate(NAMES):
        found[name] = directory / name
        if not found[name].exists():
            write_adapter(found[name], _modules(sizes, rank, dtype, seed), base="random/base")
    return found


def _modules(
    sizes: Sizes, rank: int, dtype: np.typing.DTypeLike, seed: int
) -> Iterator[tuple[str, Factors]]:
    rng = np.random.default_rng(seed)
    for path, shape in sizes.modules().items():
        factors = random_factors(shape, rank, rng)
        yield path, Factors(factors.a.astype(dtype), factors.b.astype(dtype), factors.scale)


def base_on_disk(
    directory: pathlib.Path, sizes: Sizes, dtype: np.typing.DTypeLike, shard_bytes: int = 2 * 10**9
) -> pathlib.Path:
    """A base model in shards, if it is not there already; values come from a pool."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal(_POOL, dtype=np.float32) * np.float32(_BASE_RMS)
    pool = pool.astype(dtype)

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.ones(shape, dtype)
        # Another beginning for each, so that no two weights are the same.
        start = int(rng.integers(_POOL))
        return np.resize(np.concatenate([pool[start:], pool[:start]]), shape)

    if not directory.exists():
        _write_model(directory, sizes, np.dtype(dtype), value, shard_bytes)
    return directory


def finetuned_on_disk(
    directory: pathlib.Path, sizes: Sizes, base: pathlib.Path, adapter: Adapter
) -> pathlib.Path:
    """W + dW as a full float32 model, if it is not there already; summed in float64."""
    weights = model_on_disk(base)

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        factors = adapter.modules.get(name.removesuffix(".weight"))
        if factors is None:
            return weights[name]
        return (weights[name] + factors.delta(np.float64)).astype(np.float32)

    if not directory.exists():
        _write_model(directory, sizes, np.dtype(np.float32), value, 2 * 10**9)
    return directory


def model_on_disk(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """The mapped tensors of a directory's files."""
    return {
        name: tensor
        for path in sorted(directory.glob("*.safetensors"))
        for name, tensor in map_tensors(path)[0].items()
    }


def _write_model(
    directory: pathlib.Path,
    sizes: Sizes,
    dtype: np.dtype,
    value: Callable[[str, tuple[int, ...]], np.ndarray],
    shard_bytes: int,
) -> None:
    shards, filled = [[]], 0
    for name, shape in sizes.weights():
        size = int(np.prod(shape)) * dtype.itemsize
        if filled and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += size
    placed = {}
    with finished_directory(directory) as fresh:
        for number, tensors in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            room = room_for(name for name, _ in tensors)
            with TensorWriter(fresh / file, header_room=room, metadata={"format": "pt"}) as writer:
                for name, shape in tensors:
                    writer.add(name, value(name, shape))
                    placed[name] = file
        index = {"metadata": {"total_size": sizes.parameters() * dtype.itemsize}}
        (fresh / "model.safetensors.index.json").write_text(
            json.dumps(index | {"weight_map": placed})
        )
        (fresh / "config.json").write_text(json.dumps(sizes.config(dtype.name)))


def size_of(directory: pathlib.Path) -> int:
    """Bytes of a directory's files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
