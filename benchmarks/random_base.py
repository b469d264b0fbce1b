"""Bases of random weights: on disk, or on the devices."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from langmerge_jax.models.checkpoint import abstract_params, load_tokenizer, save_base
from langmerge_jax.models.config import LlamaConfig
from langmerge_jax.models.llama import Llama
from langmerge_jax.parallel.mesh import Rules


def make_random(directory: pathlib.Path, with_tokenizer_of: pathlib.Path) -> None:
    """Writes a Llama of 30 million random weights.

    Args:
        directory: Receives it, in Hugging Face layout.
        with_tokenizer_of: A base whose tokenizer it gets.
    """
    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=None,
        tie_word_embeddings=True,
        max_position_embeddings=512,
    )
    params = nnx.state(Llama(config, rngs=nnx.Rngs(params=0)))
    # Wider than usual, so that the most likely token stands clear of the next.
    params = jax.tree.map(lambda x: 3 * x, params)
    save_base(directory, params, config, load_tokenizer(with_tokenizer_of))


def random_params(config: LlamaConfig, mesh: Mesh, dtype: jnp.dtype, seed: int = 0) -> nnx.State:
    """Draws the weights of a bare `Llama` where they are to lie.

    Norms are ones, all else is normal of a deviation of 0.02, drawn in `dtype` one layer at a time,
    so that hardly more than the weights is held.

    Args:
        config: Of the model.
        mesh: The devices.
        dtype: Of the weights.
        seed: Of the draws.
    """
    rules, drawn = Rules(), []
    for number, (path, leaf) in enumerate(nnx.to_flat_state(abstract_params(config, dtype))):
        where = rules.sharding(mesh, leaf.get_metadata()["axes"], leaf.shape)
        if path[-1] == "weight":  # A norm's.
            value = jax.device_put(np.ones(leaf.shape, dtype), where)
        else:
            layers, *shape = leaf.shape if path[0] == "layers" else (1, *leaf.shape)
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), layers)
            value = _draw(keys, tuple(shape), leaf.shape, dtype, where)
        drawn.append((path, leaf.replace(value)))
    return nnx.from_flat_state(drawn)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _draw(
    keys: jax.Array,
    of_one: tuple[int, ...],
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    where: NamedSharding,
) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        return jnp.asarray(0.02, dtype) * jax.random.normal(key, of_one, dtype)

    return jax.lax.with_sharding_constraint(jax.lax.map(one, keys).reshape(shape), where)
