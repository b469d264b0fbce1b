"""A base of random weights, larger than the demo's."""

import pathlib

import jax
from flax import nnx

from langmerge_jax.models.checkpoint import load_tokenizer, save_base
from langmerge_jax.models.config import LlamaConfig
from langmerge_jax.models.llama import Llama


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
