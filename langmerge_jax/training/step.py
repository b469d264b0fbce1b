"""One pure training step over groups of rows, jitted once a batch shape."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from langmerge_jax.models.llama import Llama
from langmerge_jax.models.lora import Active
from langmerge_jax.models.stacking import swap_leading

PyTree = Any

# Of a batch's tokens [g, b, s] and targets [g, b, t].
Shape = tuple[tuple[int, int, int], tuple[int, int, int]]

# Logits that exist at once; 512 MB in float32.
_LOGITS = 2**27


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """What a step changes.

    Attributes:
      lora: factors of n adapters, each leaf float32 [n, l, ...].
      optimizer: optax state with the same leading axis n.
      best: of each adapter the factors that did best on validation so far, like `lora`; None where
        the last ones are to be kept.
      best_loss: theirs, float32 [n], or None.
    """

    lora: PyTree
    optimizer: PyTree
    best: PyTree = None
    best_loss: jax.Array | None = None


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
    size = _at_once(g * b, model.config.vocab_size, most)
    if size >= t:
        return losses((wanted, batch["target"])) * batch["weight"]
    count = -(-t // size)

    def chunks(x: jax.Array) -> jax.Array:  # [g, b, t, ...] to [count, g, b, size, ...].
        padding = ((0, 0), (0, 0), (0, count * size - t), *((0, 0),) * (x.ndim - 3))
        x = jnp.pad(x, padding).reshape(g, b, count, size, *x.shape[3:])
        return jnp.moveaxis(x, 2, 0)

    found = jax.lax.map(jax.checkpoint(losses), (chunks(wanted), chunks(batch["target"])))
    return jnp.moveaxis(found, 0, 2).reshape(g, b, -1)[:, :, :t] * batch["weight"]


def _at_once(rows: int, vocabulary: int, most: int) -> int:
    """Targets of each row whose logits exist at once."""
    return max(1, most // (rows * vocabulary))


class Division(NamedTuple):
    """How a batch is cut into equal parts.

    Attributes:
      groups: parts that the groups are cut into.
      rows: parts that the rows of each are then cut into.
    """

    groups: int
    rows: int


def divisions(groups: int, rows: int, devices: int = 1) -> list[Division]:
    """Returns the ways to cut a batch, the fewest parts first.

    Groups are parted before the rows of a group are: rows are what is spread over devices. Where
    so many devices share the rows evenly, they share those of each part evenly.
    """
    apart = [Division(x, 1) for x in range(1, groups + 1) if groups % x == 0]
    unit = devices if rows % devices == 0 else 1
    return apart + [Division(groups, x) for x in range(2, rows + 1) if rows % (x * unit) == 0]


def in_pieces(shape: Shape, division: Division, vocabulary: int) -> bool:
    """Whether `token_losses` takes the targets piece by piece, and so computes logits twice."""
    (groups, rows, _), (_, _, targets) = shape
    return _at_once(groups * rows // math.prod(division), vocabulary, _LOGITS) < targets


def cut(x: np.ndarray | jax.Array, division: Division) -> np.ndarray | jax.Array:
    """Cuts an array [g, b, ...] as one of `divisions` says.

    Returns:
      [p, g', b', ...]: the parts of a group's rows follow one another.
    """
    by_group, by_row = division
    g, b = x.shape[0] // by_group, x.shape[1] // by_row
    x = x.reshape(by_group, g, by_row, b, *x.shape[2:]).swapaxes(1, 2)
    return x.reshape(by_group * by_row, g, b, *x.shape[4:])


def batch_losses(
    graph: nnx.GraphDef, lora: PyTree, base: PyTree, batch: dict[str, jax.Array], active: Active
) -> jax.Array:
    """Summed cross-entropy of each group's targets, [g].

    Args:
      graph: of a `Llama` with n adapters, split as (LoRA, rest).
      lora: factors, each leaf [n, l, ...].
      base: the rest.
      batch: arrays of `data.batching.pad`.
      active: the adapters of the groups.
    """
    model = nnx.merge(graph, swap_leading(lora), base)
    packed = {name: batch.get(name) for name in ("positions", "segments")}
    hidden = model(batch["tokens"], active, **packed)
    return token_losses(model, hidden, batch).sum(axis=(1, 2))


def make_step(graph: nnx.GraphDef, tx: optax.GradientTransformation):
    """Builds the step.

    Args:
      graph: of a `Llama` with n adapters, split as (LoRA, rest).
      tx: from `make_optimizer`.

    Returns:
      step(state, base, batch, active, live [g], count [n], rate [n]) -> (state, loss [g]).
      The arrays of `batch`, and ids and keys of `active`, come in parts, [p, g', ...], whose
      gradients are added up; `live` are the adapters of all groups, each once. The loss of an
      adapter is the mean over the `count` tokens it has to predict in all parts, so its gradient
      depends neither on the parts nor on which others share the batch. An adapter that no group
      names keeps its factors and optimizer state.
    """

    def losses(lora, base, batch, active, count):
        mean = batch_losses(graph, lora, base, batch, active) / count[active.ids]
        return mean.sum(), jnp.zeros(count.shape, mean.dtype).at[active.ids].add(mean)

    def step(state, base, batch, active, live, count, rate):
        def part(ids, keys, batch):
            mine = Active(ids, active.scale, keys)
            return jax.grad(losses, has_aux=True)(state.lora, base, batch, mine, count)

        def add(total, some):
            return jax.tree.map(jnp.add, total, part(*some)), None

        parts = (active.ids, active.keys, batch)
        first = jax.tree.map(lambda x: x[0], parts)
        if len(active.ids) == 1:
            gradient, loss = part(*first)
        else:
            none = jax.tree.map(jnp.zeros_like, jax.eval_shape(part, *first))
            (gradient, loss), _ = jax.lax.scan(add, none, parts)

        def advance(gradient, optimizer, lora, rate):
            updates, optimizer = tx.update(gradient, optimizer, lora)
            return optax.apply_updates(lora, jax.tree.map(lambda u: -rate * u, updates)), optimizer

        lora, optimizer = jax.vmap(advance)(gradient, state.optimizer, state.lora, rate)
        taken = jnp.zeros(rate.shape, bool).at[live].set(True)

        def keep(new, old):
            return jnp.where(taken.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

        moved = jax.tree.map(keep, (lora, optimizer), (state.lora, state.optimizer))
        return dataclasses.replace(state, lora=moved[0], optimizer=moved[1]), loss[live]

    return step


def keep_best(state: TrainState, number: jax.Array, loss: jax.Array) -> TrainState:
    """Returns the state with one adapter's factors kept as its best, if the loss says so.

    Args:
      number: of the adapter.
      loss: of its factors as they are, on validation.
    """
    better = loss < state.best_loss[number]

    def replace(best, lora):
        return best.at[number].set(jnp.where(better, lora[number], best[number]))

    return dataclasses.replace(
        state,
        best=jax.tree.map(replace, state.best, state.lora),
        best_loss=state.best_loss.at[number].set(jnp.where(better, loss, state.best_loss[number])),
    )
