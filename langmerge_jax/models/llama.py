"""Llama and its kin in Flax NNX, top to bottom: embed, a scan over stacked layers, norm, head.

Axes: g group, b row, s sequence, t other sequence axis, d model, h query heads, k key/value heads,
c head dimension, i in, o out, f feed-forward, v vocabulary, l layer, n adapters, r rank.

The batch is `tokens [g, b, s]`; `adapter_id [g]` names the adapter each group uses.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from langmerge_jax.models.attention import Attention, attend_after
from langmerge_jax.models.config import LlamaConfig, inverse_frequencies
from langmerge_jax.models.lora import Active, BaseParam, LoraLinear, LoraSpec

_AXES = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "heads"),
    "v_proj": ("embed", "heads"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
}

# (q, k, v, what the layer has of the past) -> what each position reads.
Attend = Callable[[jax.Array, jax.Array, jax.Array, "Past | None"], jax.Array]


class Past(NamedTuple):
    """Keys, rotated, and values of positions computed before, [l, g, b, k, t, c]."""

    k: jax.Array
    v: jax.Array


class Tail(NamedTuple):
    """A batch whose rows end in a part that sees its row's beginning through a mask.

    Attributes:
      start: where that part begins, the same in all rows.
      seen: bool [g, b, start], the earlier positions that count.
      visible: bool [s - start, s - start], which positions of the part see which.
    """

    start: int
    seen: jax.Array
    visible: jax.Array


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


class SelfAttention(nnx.Module):
    """Grouped-query self-attention."""

    def __init__(self, config: LlamaConfig, linear, dtype: jnp.dtype):
        self.head_dim = config.head_dim
        self.q_proj, self.k_proj = linear("q_proj"), linear("k_proj")
        self.v_proj, self.o_proj = linear("v_proj"), linear("o_proj")
        if config.qk_norm:
            shape = (config.num_hidden_layers, config.head_dim)
            self.q_norm = Norm(shape, config.rms_norm_eps, dtype)
            self.k_norm = Norm(shape, config.rms_norm_eps, dtype)

    def __call__(
        self, x: jax.Array, angles: jax.Array, active: Active, attend: Attend, past: Past | None
    ) -> tuple[jax.Array, Past]:
        heads = (*x.shape[:3], -1, self.head_dim)
        q = self.q_proj(x, active).reshape(heads)
        k = self.k_proj(x, active).reshape(heads)
        v = self.v_proj(x, active).reshape(heads)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, angles), rotate(k, angles)
        out = attend(q, k, v, past).reshape(*x.shape[:3], -1)
        return self.o_proj(out, active), Past(k.swapaxes(2, 3), v.swapaxes(2, 3))


class Mlp(nnx.Module):
    """SwiGLU feed-forward."""

    def __init__(self, linear):
        self.gate_proj, self.up_proj = linear("gate_proj"), linear("up_proj")
        self.down_proj = linear("down_proj")

    def __call__(self, x: jax.Array, active: Active) -> jax.Array:
        gated = jax.nn.silu(self.gate_proj(x, active)) * self.up_proj(x, active)
        return self.down_proj(gated, active)


class Layer(nnx.Module):
    """One decoder layer; its parameters are stacked over all layers and scanned."""

    def __init__(
        self, config: LlamaConfig, lora: LoraSpec | None, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        layers, eps = config.num_hidden_layers, config.rms_norm_eps
        shapes, biased = config.projections(), config.biased()

        def linear(name: str) -> LoraLinear:
            adapted = lora if lora and name in lora.targets else None
            return LoraLinear(
                name,
                layers,
                shapes[name],
                _AXES[name],
                adapted,
                bias=name in biased,
                dtype=dtype,
                rngs=rngs,
            )

        self.self_attn = SelfAttention(config, linear, dtype)
        self.mlp = Mlp(linear)
        self.input_layernorm = Norm((layers, config.hidden_size), eps, dtype)
        self.post_attention_layernorm = Norm((layers, config.hidden_size), eps, dtype)

    def __call__(
        self, x: jax.Array, angles: jax.Array, active: Active, attend: Attend, past: Past | None
    ) -> tuple[jax.Array, Past]:
        read, new = self.self_attn(self.input_layernorm(x), angles, active, attend, past)
        x = x + read
        return x + self.mlp(self.post_attention_layernorm(x), active), new


class Llama(nnx.Module):
    """A decoder-only Llama, Mistral, Qwen2 or Qwen3 with room for n adapters.

    Args:
      config: shape and constants.
      lora: the adapters to hold, or None for the bare base.
      dtype: of base weights and computation.
      remat: recompute each layer in the backward pass instead of keeping its activations.
      attention: how it is computed.
      rngs: stream `params`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        lora: LoraSpec | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        attention: Attention = Attention(),  # noqa: B008 (frozen)
        rngs: nnx.Rngs,
    ):
        self.config, self.remat, self.attention = config, remat, attention
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
        active: Active,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        tail: Tail | None = None,
    ) -> jax.Array:
        """Computes the final hidden states.

        Args:
          tokens: int32 [g, b, s], padded at the end (a causal model never looks there).
          active: the adapters of the groups.
          positions: int32 [g, b, s], or None for 0, 1, 2, ….
          segments: int32 [g, b, s], or None. Positions see their own segment only.
          tail: see `Tail`, or None.

        Returns:
          [g, b, s, d], in the compute dtype.
        """

        def attend(q, k, v, _):
            if tail is None:
                return self.attention(q, k, v, segments)
            early, late = zip(*(jnp.split(x, [tail.start], axis=2) for x in (q, k, v)), strict=True)
            past = Past(*(x.swapaxes(2, 3) for x in early[1:]))
            read = self.attention(*early), attend_after(*late, past, tail.seen, tail.visible)
            return jnp.concatenate(read, axis=2)

        return self._run(tokens, active, positions, attend)[0]

    def prefill(self, tokens: jax.Array, active: Active) -> tuple[jax.Array, Past]:
        """Computes the final hidden states [g, b, s, d], and keeps keys and values.

        Args: tokens and active as in `__call__`.
        """
        return self._run(
            tokens, active, None, lambda q, k, v, _: self.attention(q, k, v), keep=True
        )

    def extend(
        self, tokens: jax.Array, active: Active, positions: jax.Array, past: Past, seen: jax.Array
    ) -> tuple[jax.Array, Past]:
        """Computes the hidden states of one more position a row.

        Args:
          tokens, positions: int32 [g, b, 1].
          active: as in `__call__`.
          past: of t earlier positions.
          seen: bool [g, b, t], those of them that count.

        Returns:
          Hidden states [g, b, 1, d], and keys and values of the new position.
        """

        def attend(q, k, v, past):
            return attend_after(q, k, v, past, seen, jnp.ones((1, 1), bool))

        return self._run(tokens, active, positions, attend, past, keep=True)

    def _run(
        self,
        tokens: jax.Array,
        active: Active,
        positions: jax.Array | None,
        attend: Attend,
        past: Past | None = None,
        *,
        keep: bool = False,
    ) -> tuple[jax.Array, Past | None]:
        x = self.embed_tokens[...][tokens]
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
        angles = positions[..., None] * jnp.asarray(inverse_frequencies(self.config))
        graph, stacked = nnx.split(self.layers)

        def layer(x, of_layer):
            number, params, past = of_layer
            mine = active
            if active.keys is not None:
                keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(active.keys)
                mine = dataclasses.replace(active, keys=keys)
            x, new = nnx.merge(graph, params)(x, angles, mine, attend, past)
            return x, new if keep else None

        numbers = jnp.arange(self.config.num_hidden_layers)
        body = jax.checkpoint(layer) if self.remat else layer
        x, new = jax.lax.scan(body, x, (numbers, stacked, past))
        return self.norm(x), new

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Maps hidden states [..., d] to float32 logits [..., v]."""
        head = self.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return jnp.einsum(
            "...d,vd->...v",
            hidden,
            head[...],
            preferred_element_type=jnp.promote_types(hidden.dtype, jnp.float32),
        )
