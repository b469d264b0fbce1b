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

from langmerge_jax.models.attention import Attention, Past, attend_after
from langmerge_jax.models.config import LlamaConfig, inverse_frequencies
from langmerge_jax.models.lora import Active, BaseParam, LoraLinear, LoraSpec
from langmerge_jax.parallel.mesh import Rules

_AXES = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "heads"),
    "v_proj": ("embed", "heads"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
}

# What of a layer is kept for the backward pass, which computes the rest again: all of it, nothing
# but its input, or the products with the weights of the base.
REMAT = {
    "none": None,
    "layer": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# Cosine and sine of each position's angles, [g, b, s, 1, c / 2].
Rotation = tuple[jax.Array, jax.Array]

# (q, k, v, what the layer has of the past) -> what each position reads.
Attend = Callable[[jax.Array, jax.Array, jax.Array, Past | None], jax.Array]


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


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Applies rotary position embedding to x [g, b, s, heads, c].

    In the two-halves layout of Hugging Face checkpoints.
    """
    cos, sin = rotation
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
        self, x: jax.Array, rotation: Rotation, active: Active, attend: Attend, past: Past | None
    ) -> tuple[jax.Array, Past]:
        heads = (*x.shape[:3], -1, self.head_dim)
        q = self.q_proj(x, active).reshape(heads)
        k = self.k_proj(x, active).reshape(heads)
        v = self.v_proj(x, active).reshape(heads)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, rotation), rotate(k, rotation)
        out = attend(q, k, v, past).reshape(*x.shape[:3], -1)
        return self.o_proj(out, active), Past.of(k, v)


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
        self, x: jax.Array, rotation: Rotation, active: Active, attend: Attend, past: Past | None
    ) -> tuple[jax.Array, Past]:
        read, new = self.self_attn(self.input_layernorm(x), rotation, active, attend, past)
        x = x + read
        return x + self.mlp(self.post_attention_layernorm(x), active), new


class Llama(nnx.Module):
    """A decoder-only Llama, Mistral, Qwen2 or Qwen3 with room for n adapters.

    Args:
      config: shape and constants.
      lora: the adapters to hold, or None for the bare base.
      dtype: of base weights and computation.
      remat: what the backward pass computes again, see `REMAT`.
      attention: how it is computed.
      rngs: stream `params`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        lora: LoraSpec | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str = "none",
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
          tail: see `Tail`, or None; not together with segments.

        Returns:
          [g, b, s, d], in the compute dtype.
        """

        def attend(q, k, v, _):
            if tail is None:
                return self.attention(q, k, v, segments)
            early, late = zip(*(jnp.split(x, [tail.start], axis=2) for x in (q, k, v)), strict=True)
            past = Past.of(*early[1:])
            read = self.attention(*early), attend_after(*late, past, tail.seen, tail.visible)
            return jnp.concatenate(read, axis=2)

        rotation = None if positions is None else self.rotation(positions)
        return self._run(tokens, active, rotation, attend)[0]

    def rotation(self, positions: jax.Array) -> Rotation:
        """Returns what turns queries and keys at `positions`, int32 [g, b, s]."""
        angles = positions[..., None, None] * jnp.asarray(inverse_frequencies(self.config))
        return jnp.cos(angles), jnp.sin(angles)

    def apart(self) -> list[nnx.State]:
        """Returns the parameters of each layer, for `extend`: a copy of the stacked ones."""
        stacked = nnx.state(self.layers)
        numbers = range(self.config.num_hidden_layers)
        return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in numbers]

    def prefill(self, tokens: jax.Array, active: Active) -> tuple[jax.Array, Past]:
        """Computes the final hidden states [g, b, s, d], and keeps keys and values.

        Args: tokens and active as in `__call__`.
        """
        return self._run(
            tokens, active, None, lambda q, k, v, _: self.attention(q, k, v), keep=True
        )

    def extend(
        self,
        tokens: jax.Array,
        active: Active,
        rotation: Rotation,
        past: Past | list[Past],
        seen: jax.Array,
        layers: list[nnx.State] | None = None,
    ) -> tuple[jax.Array, Past | list[Past]]:
        """Computes the hidden states of one more position a row.

        Args:
          tokens: int32 [g, b, 1].
          active: as in `__call__`.
          rotation: of the new positions.
          past: of t earlier positions, stacked over layers; with `layers` one for each.
          seen: bool [g, b, t], those of them that count.
          layers: from `apart`: then the layers follow one another instead of being scanned. A scan
            copies weights and past of each layer out of their stacks, on a CPU a quarter of the
            time of small models.

        Returns:
          Hidden states [g, b, 1, d], and keys and values of the new position, like `past`.
        """

        def attend(q, k, v, past):
            return attend_after(q, k, v, past, seen, jnp.ones((1, 1), bool))

        return self._run(tokens, active, rotation, attend, past, layers=layers, keep=True)

    def _run(
        self,
        tokens: jax.Array,
        active: Active,
        rotation: Rotation | None,
        attend: Attend,
        past: Past | list[Past] | None = None,
        *,
        layers: list[nnx.State] | None = None,
        keep: bool = False,
    ) -> tuple[jax.Array, Past | list[Past] | None]:
        x = self.embed_tokens[...][tokens]
        if rotation is None:
            rotation = self.rotation(jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape))
        graph, stacked = nnx.split(self.layers)

        def layer(x, of_layer):
            number, params, past = of_layer
            mine = active
            if active.keys is not None:
                fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
                keys = fold_in(active.keys, number)
                mine = dataclasses.replace(active, keys=keys)
            x, new = nnx.merge(graph, params)(x, rotation, mine, attend, past)
            return self._spread(x), new if keep else None

        if layers is not None:
            found = []
            for number, (params, own) in enumerate(zip(layers, past, strict=True)):
                x, new = layer(x, (number, params, own))
                found.append(new)
            return self.norm(x), found
        numbers = jnp.arange(self.config.num_hidden_layers)
        policy = REMAT[self.remat]
        body = jax.checkpoint(layer, policy=policy) if policy else layer
        x, found = jax.lax.scan(body, self._spread(x), (numbers, stacked, past))
        return self.norm(x), found

    def _spread(self, x: jax.Array) -> jax.Array:
        """Spreads hidden states [g, b, s, d] between two layers, of which training keeps all."""
        mesh = self.attention.mesh
        if mesh is None or mesh.shape["tensor"] == 1:
            return x
        where = Rules().sharding(mesh, ("groups", "rows", "positions", None), x.shape)
        return jax.lax.with_sharding_constraint(x, where)

    def logits(self, hidden: jax.Array, *, tokens_first: bool = False) -> jax.Array:
        """Maps hidden states [..., d] to float32 logits [..., v], or [v, ...] with `tokens_first`.

        For few positions a CPU computes the latter in two thirds of the time.
        """
        head = self.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        product, factors = "...d,vd->...v", (hidden, head[...])
        if tokens_first:
            product, factors = "vd,...d->v...", factors[::-1]
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        return jnp.einsum(product, *factors, preferred_element_type=wide)
