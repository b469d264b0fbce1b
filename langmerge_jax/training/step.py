"""One pure training step over groups of rows, jitted once a batch shape."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from langmerge_jax.models.llama import Llama

PyTree = Any

# Logits that exist at once; 512 MB in float32.
_LOGITS = 2**27


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """What a step changes.

    Attributes:
      lora: factors of n adapters, each leaf float32 [n, l, ...].
      optimizer: optax state with the same leading axis n.
    """

    lora: PyTree
    optimizer: PyTree


def make_optimizer(
    *, b1: float, b2: float, eps: float, weight_decay: float, max_grad_norm: float
) -> optax.GradientTransformation:
    """AdamW without its learning rate, which the step multiplies in for each adapter.

    References: arXiv 1711.05101.
    """
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay),
    )


def learning_rate(step: int, total: int, *, peak: float, warmup: float) -> float:
    """Linear warm-up from 0 over the share `warmup` of all steps, then linear decay to 0."""
    ramp = max(1, round(warmup * total))
    return peak * min((step + 1) / ramp, (total - step) / max(1, total - ramp))


def token_losses(
    model: Llama, hidden: jax.Array, batch: dict[str, jax.Array], *, most: int = _LOGITS
) -> jax.Array:
    """Cross-entropy of the batch's targets, float32 [g, b, t], zero where the weight is.

    Only the hidden states that predict a target go through the head. Where these are many, it is
    some positions after the other, whose logits the backward pass computes again.

    Args:
      hidden: [g, b, s, d].
      batch: arrays of `data.batching.pad`.
      most: logits that may exist at once, over all devices.
    """
    wanted = jnp.take_along_axis(hidden, batch["target_index"][..., None], axis=2)

    def losses(some: tuple[jax.Array, jax.Array]) -> jax.Array:
        wanted, target = some
        return optax.softmax_cross_entropy_with_integer_labels(model.logits(wanted), target)

    g, b, t = batch["target"].shape
    size = max(1, most // (g * b * model.config.vocab_size))
    if size >= t:
        return losses((wanted, batch["target"])) * batch["weight"]
    count = -(-t // size)

    def chunks(x: jax.Array) -> jax.Array:  # [g, b, t, ...] to [count, g, b, size, ...].
        padding = ((0, 0), (0, 0), (0, count * size - t), *((0, 0),) * (x.ndim - 3))
        x = jnp.pad(x, padding).reshape(g, b, count, size, *x.shape[3:])
        return jnp.moveaxis(x, 2, 0)

    found = jax.lax.map(jax.checkpoint(losses), (chunks(wanted), chunks(batch["target"])))
    return jnp.moveaxis(found, 0, 2).reshape(g, b, -1)[:, :, :t] * batch["weight"]


def make_step(graph: nnx.GraphDef, tx: optax.GradientTransformation):
    """Builds the step.

    Args:
      graph: of a `Llama` with n adapters, split as (LoRA, rest).
      tx: from `make_optimizer`.

    Returns:
      step(state, base, batch, active, rate [n]) -> (state, loss [g]).
      Adapter ids are distinct. The loss of a group is the mean over its own answer tokens, so an
      adapter's gradient does not depend on which others share the batch. An adapter that no group
      names keeps its factors and optimizer state.
    """

    def losses(lora, base, batch, active):
        by_layer = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), lora)
        model = nnx.merge(graph, by_layer, base)
        hidden = model(batch["tokens"], active)
        total = token_losses(model, hidden, batch).sum(axis=(1, 2))
        mean = total / jnp.maximum(batch["weight"].sum(axis=(1, 2)), 1)
        return mean.sum(), mean

    def step(state, base, batch, active, rate):
        gradient, loss = jax.grad(losses, has_aux=True)(state.lora, base, batch, active)

        def advance(gradient, optimizer, lora, rate):
            updates, optimizer = tx.update(gradient, optimizer, lora)
            return optax.apply_updates(lora, jax.tree.map(lambda u: -rate * u, updates)), optimizer

        lora, optimizer = jax.vmap(advance)(gradient, state.optimizer, state.lora, rate)
        live = jnp.zeros(rate.shape, bool).at[active.ids].set(True)

        def keep(new, old):
            return jnp.where(live.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

        new = TrainState(lora, optimizer)
        return jax.tree.map(keep, new, state), loss

    return step
