"""Llama in Flax NNX, read top to bottom: embed, a scan over stacked layers, norm, head.

Axes: g group, b row, s sequence, t other sequence axis, d model, h query heads, k key/value heads,
c head dimension, i in, o out, f feed-forward, v vocabulary, l layer, n adapters, r rank.

The batch is `tokens [g, b, s]`; `adapter_id [g]` names the adapter each group uses.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from langmerge_jax.models.attention import attend
from langmerge_jax.models.config import LlamaConfig, inverse_frequencies
from langmerge_jax.models.lora import BaseParam, LoraLinear, LoraSpec

_AXES = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "heads"),
    "v_proj": ("embed", "heads"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
}


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in at least float32.

    References: arXiv 1910.07467.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return weight * wide.astype(x.dtype)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Applies rotary position embedding in the two-halves layout of Hugging Face checkpoints.

    Args: x [g, b, s, heads, c]; angles [g, b, s, c / 2] in radians.
    """
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


class Norm(nnx.Module):
    """The weight of one RMSNorm, or of `layers` stacked ones."""

    def __init__(self, shape: tuple[int, ...], eps: float, dtype: jnp.dtype):
        self.weight = BaseParam(jnp.ones(shape, dtype), axes=(None,) * len(shape))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.weight[...], self.eps)


class Attention(nnx.Module):
    """Grouped-query self-attention."""

    def __init__(self, config: LlamaConfig, linear):
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj, self.k_proj = linear("q_proj"), linear("k_proj")
        self.v_proj, self.o_proj = linear("v_proj"), linear("o_proj")

    def __call__(self, x: jax.Array, angles: jax.Array, branch: jax.Array | None, *lora):
        g, b, s, _ = x.shape
        q = self.q_proj(x, *lora).reshape(g, b, s, self.heads, self.head_dim)
        k = self.k_proj(x, *lora).reshape(g, b, s, self.kv_heads, self.head_dim)
        v = self.v_proj(x, *lora).reshape(g, b, s, self.kv_heads, self.head_dim)
        out = attend(rotate(q, angles), rotate(k, angles), v, branch)
        return self.o_proj(out.reshape(g, b, s, self.heads * self.head_dim), *lora)


class Mlp(nnx.Module):
    """SwiGLU feed-forward."""

    def __init__(self, linear):
        self.gate_proj, self.up_proj = linear("gate_proj"), linear("up_proj")
        self.down_proj = linear("down_proj")

    def __call__(self, x: jax.Array, *lora) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x, *lora)) * self.up_proj(x, *lora), *lora)


class Layer(nnx.Module):
    """One decoder layer; its parameters are stacked over all layers and scanned."""

    def __init__(
        self, config: LlamaConfig, lora: LoraSpec | None, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        layers, eps = config.num_hidden_layers, config.rms_norm_eps
        shapes = config.projections()

        def linear(name: str) -> LoraLinear:
            adapted = lora if lora and name in lora.targets else None
            return LoraLinear(layers, shapes[name], _AXES[name], adapted, dtype, rngs)

        self.self_attn = Attention(config, linear)
        self.mlp = Mlp(linear)
        self.input_layernorm = Norm((layers, config.hidden_size), eps, dtype)
        self.post_attention_layernorm = Norm((layers, config.hidden_size), eps, dtype)

    def __call__(self, x: jax.Array, angles: jax.Array, branch: jax.Array | None, *lora):
        x = x + self.self_attn(self.input_layernorm(x), angles, branch, *lora)
        return x + self.mlp(self.post_attention_layernorm(x), *lora)


class Llama(nnx.Module):
    """A decoder-only Llama with room for n adapters.

    Args:
      config: shape and constants.
      lora: the adapters to hold, or None for the bare base.
      dtype: of base weights and computation.
      remat: recompute each layer in the backward pass instead of keeping its activations.
      rngs: stream `params`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        lora: LoraSpec | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config, self.remat = config, remat
        vocab, width = config.vocab_size, config.hidden_size

        def table():
            return (jax.random.normal(rngs.params(), (vocab, width)) * 0.02).astype(dtype)

        self.embed_tokens = BaseParam(table(), axes=("vocab", "embed"))
        self.layers = Layer(config, lora, dtype, rngs)
        self.norm = Norm((width,), config.rms_norm_eps, dtype)
        if not config.tie_word_embeddings:
            self.lm_head = BaseParam(table(), axes=("vocab", "embed"))

    def __call__(
        self,
        tokens: jax.Array,
        lora_scale: jax.Array,
        adapter_id: jax.Array,
        positions: jax.Array | None = None,
        branch: jax.Array | None = None,
    ) -> jax.Array:
        """Computes the final hidden states.

        Args:
          tokens: int32 [g, b, s], padded at the end (a causal model never looks there).
          lora_scale: float32 [n], alpha / rank of each adapter.
          adapter_id: int32 [g].
          positions: int32 [g, b, s], or None for 0, 1, 2, ….
          branch: int32 [g, b, s], or None. Continuations of one prompt that must not see each
            other: 0 is the prompt, equal numbers belong together (`attend`).

        Returns:
          [g, b, s, d], in the compute dtype.
        """
        x = self.embed_tokens[...][tokens]
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
        angles = positions[..., None] * jnp.asarray(inverse_frequencies(self.config))
        graph, stacked = nnx.split(self.layers)

        def layer(x, params):
            return nnx.merge(graph, params)(x, angles, branch, lora_scale, adapter_id), None

        x, _ = jax.lax.scan(jax.checkpoint(layer) if self.remat else layer, x, stacked)
        return self.norm(x)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Maps hidden states [..., d] to float32 logits [..., v]."""
        head = self.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return jnp.einsum(
            "...d,vd->...v",
            hidden,
            head[...],
            preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32),
        )
