"""Generation, against the time that reading weights and cache takes."""

import time

import jax
import numpy as np
from flax import nnx

from benchmarks.gpu_shape import Limits, Shape
from benchmarks.measuring import Section
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.decoding import Decoder
from langmerge_jax.models.lora import LoraSpec
from langmerge_jax.models.stacking import split_lora
from langmerge_jax.parallel.memory import peak_beside
from langmerge_jax.parallel.mesh import Rules

_ROUNDS = 3


def decode(
    section: Section,
    shape: Shape,
    base: Base,
    limits: Limits,
    *,
    rows: int,
    variants: int = 0,
    bar: str = "",
) -> None:
    """Greedy continuations of random prompts.

    Args:
        rows: Prompts, of each variant.
        variants: Adapters that answer in one batch; 0 for the base alone.
        bar: Its name in `shape.bars`, for the share of the limit.
    """
    config, groups = shape.config, max(variants, 1)
    spec = lora = None
    if variants:
        spec = LoraSpec(variants, shape.rank, tuple(config.projections()))
        lora = jax.block_until_ready(random_lora(base, spec))
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, config.vocab_size, (groups * rows, shape.prompt)).tolist()
    decoder, times = Decoder(base, rows), []

    def run() -> float:
        """Seconds from the first token, which the prompt gives, to the last."""
        times.clear()
        start = time.perf_counter()
        found = decoder(
            prompts,
            max_new_tokens=shape.new,
            lora=lora,
            spec=spec,
            adapters=np.repeat(np.arange(groups), rows).tolist(),
            on_tokens=lambda _: times.append(time.perf_counter()),
        )
        if {len(tokens) for tokens in found} != {shape.new} or len(times) != 2:
            raise AssertionError(f"{shape.new} tokens in two calls were wanted")
        times.insert(0, start)
        return times[2] - times[1]

    start = time.perf_counter()
    run()
    section.note("cold", time.perf_counter() - start, "s")
    after, before = [], []

    def rounds() -> None:
        for _ in range(_ROUNDS):
            after.append(run() / (shape.new - 1))
            before.append(times[1] - times[0])

    beside = peak_beside(base.mesh, rounds)
    section.median("the prompts", before)
    seconds = section.median("a token", after)
    weights, factors, cache = read_bytes(shape, base, groups * rows, lora)
    if beside is not None:
        section.note("memory", beside / 1e9, "GB")
    section.settings |= {
        "rows": groups * rows,
        "variants": variants,
        "prompt": shape.prompt,
        "new": shape.new,
        "bytes_a_token": {"weights": weights, "adapters": factors, "cache": cache},
    }
    share = limits.of_copy((weights + factors + cache) / seconds)
    section.note("tokens", groups * rows / seconds, "tok/s", share=share)
    least = shape.bars.get(bar)
    section.note("of limit", share.value, least=least)


def read_bytes(shape: Shape, base: Base, rows: int, lora: nnx.State | None) -> tuple[int, int, int]:
    """Bytes of weights, of adapters, and of the cache's keys and values, read once a token.

    Of the embeddings, where they are not the head as well, a token reads a row. The cache has room
    for all that is generated, and is read whole.
    """
    config = shape.config
    weights = sum(x.nbytes for x in jax.tree.leaves(base.params))
    if not config.tie_word_embeddings:
        weights -= base.params["embed_tokens"][...].nbytes
    factors = sum(x.nbytes for x in jax.tree.leaves(lora))
    a_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    cache = rows * (shape.prompt + shape.new) * a_position * base.dtype.itemsize
    return weights, factors, cache


def random_lora(base: Base, spec: LoraSpec) -> nnx.State:
    """Adapters of random factors, drawn on the device."""
    _, abstract = split_lora(base.config, spec, base.dtype)
    drawn = []
    for number, (path, leaf) in enumerate(nnx.to_flat_state(abstract)):
        where = Rules().sharding(base.mesh, leaf.get_metadata()["axes"], leaf.shape)
        key = jax.random.fold_in(jax.random.key(1), number)
        draw = jax.jit(
            lambda key, shape=leaf.shape: 0.01 * jax.random.normal(key, shape), out_shardings=where
        )
        drawn.append((path, leaf.replace(draw(key))))
    return nnx.from_flat_state(drawn)
