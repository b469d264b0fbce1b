"""What `benchmarks.gpu` runs at: sizes, the device's limits, and the base."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks import measuring
from benchmarks.measuring import Section, Share
from benchmarks.random_base import random_params
from langmerge_jax.models.attention import Attention, choose
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.config import LlamaConfig, RopeScaling
from langmerge_jax.parallel.devices import measure_speed

DTYPE = jnp.dtype(jnp.bfloat16)
LANGUAGES = ("de", "en", "fr", "ja", "zh")
# The paper's batch.
ROWS = 8

_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a run.

    Attributes:
        name: Of the model.
        config: Of the model.
        rank: Of the adapters.
        short, middle, long: Tokens a row in training.
        prompt, new: Tokens of a prompt and of what is generated.
        many: Rows of a large batch in generation.
        checked: Outputs and inputs of the projection by which KnOTS is checked.
        positions: Tokens a row by which attention is checked.
        side: Of the matrices that are multiplied to measure the device.
        copied: Bytes that are copied to measure it.
        round_seconds: That a round of timed steps is to take, about.
        bars: What is asked for, by name, on one NVIDIA H200; empty where nothing is.
    """

    name: str
    config: LlamaConfig
    rank: int
    short: int
    middle: int
    long: int
    prompt: int
    new: int
    many: int
    checked: tuple[int, int]
    positions: int
    side: int
    copied: int
    round_seconds: float
    bars: Mapping[str, float]


EIGHT_B = Shape(
    name="Llama-3.1-8B",
    config=LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
        tie_word_embeddings=False,
        max_position_embeddings=131_072,
    ),
    rank=64,
    short=128,
    middle=512,
    long=8192,
    prompt=128,
    new=256,
    many=64,
    checked=(1024, 1024),
    positions=256,
    side=8192,
    copied=2**30,
    round_seconds=2.0,
    bars={
        "middle": 15_000,
        "long": 12_500,
        "together": 1.15,
        "knots": 10,
        "fold": 60,
        "decode": 0.6,
    },
)

TINY = Shape(
    name="a tiny Llama",
    config=LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=None,
        tie_word_embeddings=False,
        max_position_embeddings=512,
    ),
    rank=4,
    short=16,
    middle=32,
    long=128,
    prompt=16,
    new=16,
    many=8,
    checked=(48, 64),
    positions=64,
    side=256,
    copied=2**24,
    round_seconds=0.05,
    bars={},
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the device does at best, as measured.

    Attributes:
        matmul: FLOP/s of a product of large matrices in `DTYPE`.
        copy: Bytes a second that a copy in its memory reads and writes, together.
    """

    matmul: float
    copy: float

    def of_matmul(self, flops: float) -> Share:
        """The share of FLOP/s."""
        return Share(flops / self.matmul, "matmul")

    def of_copy(self, rate: float) -> Share:
        """The share of bytes a second."""
        return Share(rate / self.copy, "copy")


def measure_limits(section: Section, shape: Shape, device: jax.Device) -> Limits:
    """Measures the device, and the link between it and the host."""
    section.settings |= {"matmul_side": shape.side, "copied_bytes": shape.copied}
    with jax.default_device(device):
        numbers = jnp.zeros(shape.copied // 4, jnp.float32)
    host = np.zeros(shape.copied // 4, np.float32)
    there = _seconds(lambda: jax.device_put(host, device))
    # Each array keeps what was once copied of it. On a CPU nothing is copied.
    arrays = iter(jax.block_until_ready([numbers + i for i in range(_ROUNDS + 1)]))
    back = _seconds(lambda: np.asarray(next(arrays)))
    found = Limits(*measure_speed(device, DTYPE, side=shape.side, copied=shape.copied))
    section.note("matmul", found.matmul / 1e12, "TFLOP/s")
    section.note("copy", found.copy / 1e9, "GB/s")
    section.note("host to device", shape.copied / there / 1e9, "GB/s")
    section.note("device to host", shape.copied / back / 1e9, "GB/s")
    return found


def _seconds(function: Callable[[], Any]) -> float:
    """The median of calls, warm."""

    def take() -> None:
        jax.block_until_ready(function())

    take()
    return statistics.median(measuring.timed(take) for _ in range(_ROUNDS))


def for_device(shape: Shape, kind: str) -> Shape:
    """The shape with the bars that hold for a device, by jax's name of it."""
    return shape if "H200" in kind else dataclasses.replace(shape, bars={})


def make_base(section: Section, shape: Shape, mesh: Mesh) -> Base:
    """Draws the weights on the device."""
    device, config = mesh.devices.flat[0], shape.config
    attention = choose(
        "auto", platform=device.platform, dtype=DTYPE, head_dim=config.head_dim, mesh=mesh
    )
    attention = running(section, shape, attention)
    start = time.perf_counter()
    params = jax.block_until_ready(random_params(config, mesh, DTYPE))
    section.note("drawn, with compiling", time.perf_counter() - start, "s")
    leaves = jax.tree.leaves(params)
    section.settings |= {"attention": attention.backend, "parameters": sum(x.size for x in leaves)}
    section.note("weights", sum(x.nbytes for x in leaves) / 1e9, "GB")
    return Base("random", config, params, None, mesh, DTYPE, attention)


def running(section: Section, shape: Shape, attention: Attention) -> Attention:
    """Returns the attention, or `blockwise` in place of a kernel that fails on this device.

    It is tried forward and backward, at the least and at the greatest length.
    """
    config = shape.config
    heads = (config.num_attention_heads, *(config.num_key_value_heads,) * 2)

    @jax.jit
    def gradients(q, k, v):
        out, back = jax.vjp(attention, q, k, v)
        return back(out)

    def take(length: int) -> None:
        given = (jnp.ones((1, 1, length, count, config.head_dim), DTYPE) for count in heads)
        jax.block_until_ready(gradients(*given))

    if attention.backend == "blockwise" or all(
        section.attempt(f"{attention.backend} at {length}", functools.partial(take, length))
        for length in (shape.positions, shape.long)
    ):
        return attention
    section.remark("attention is blockwise instead")
    return dataclasses.replace(attention, backend="blockwise")
