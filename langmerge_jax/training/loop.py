"""Trains n adapters in one program over one frozen base."""

import dataclasses
import json
import math
import pathlib
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from langmerge_jax.adapters import Adapter
from langmerge_jax.data.batching import bucket, pad, steps_per_epoch, training_batches
from langmerge_jax.data.tasks import Encoded
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.lora import LoraSpec
from langmerge_jax.models.stacking import init_lora, split_lora, unstack
from langmerge_jax.parallel.mesh import Rules
from langmerge_jax.progress import Progress
from langmerge_jax.training.step import TrainState, learning_rate, make_optimizer, make_step


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How adapters are trained; the paper's numbers stand in `langmerge_jax.config`.

    Attributes:
      rank, alpha: of LoRA; scale = alpha / rank.
      targets: projections that carry an adapter.
      epochs, batch_size: batch_size rows of each adapter a step.
      learning_rate: peak; warmup: share of the steps.
      b1, b2, eps, weight_decay, max_grad_norm: AdamW and clipping, an adapter.
      buckets: sequence lengths a batch is padded to.
      remat: recompute activations in the backward pass.
      seed: of initial factors and of the order of rows.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    max_grad_norm: float
    buckets: tuple[int, ...]
    remat: bool
    seed: int


def adapter_seed(name: str, seed: int) -> int:
    """Returns the seed of one adapter's initial factors, whatever is trained beside it."""
    return zlib.crc32(f"{seed}/{name}".encode())


def train(
    base: Base,
    data: Mapping[str, Sequence[Encoded]],
    settings: TrainSettings,
    log: pathlib.Path,
) -> dict[str, Adapter]:
    """Trains one adapter for each entry of `data`, all in one program.

    An adapter with fewer rows ends earlier: its group leaves the batch. Which adapters train
    beside it changes nothing in its result but rounding.

    Args:
      base: the frozen model.
      data: {adapter name: its encoded rows}.
      settings: hyper-parameters, shared by all.
      log: jsonl file that receives one line a step: step, loss and tokens of each live adapter.

    Returns:
      {adapter name: Adapter}.

    Raises:
      FloatingPointError: if a loss is not finite.
    """
    names = sorted(data)
    spec = LoraSpec(len(names), settings.rank, settings.targets)
    graph, _ = split_lora(base.config, spec, base.dtype, settings.remat)
    tx = make_optimizer(
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
    )
    lora = init_lora(base.config, spec, [adapter_seed(n, settings.seed) for n in names])
    state = TrainState(lora, jax.vmap(tx.init)(lora))
    rules = Rules()
    whole = rules.sharding(base.mesh, (), ())
    placed = jax.tree.map(lambda _: whole, state)
    state = jax.device_put(state, placed)
    step = jax.jit(make_step(graph, tx), donate_argnums=0, out_shardings=(placed, whole))

    total = [steps_per_epoch(len(data[n]), settings.batch_size) * settings.epochs for n in names]
    streams = [
        training_batches(
            data[n],
            rows=settings.batch_size,
            epochs=settings.epochs,
            seed=settings.seed,
            name=n,
        )
        for n in names
    ]
    answers = max(len(e.answer) for rows in data.values() for e in rows)
    scale = jnp.full(len(names), settings.alpha / settings.rank, jnp.float32)
    what = f"train {', '.join(names)}"
    with log.open("w", encoding="utf-8") as lines, Progress(what, max(total), "step") as progress:
        pending = None
        for number in range(max(total)):
            live = [i for i in range(len(names)) if number < total[i]]
            groups = [next(streams[i]) for i in live]
            length = bucket(max(len(e) for g in groups for e in g), settings.buckets)
            batch = pad(groups, length, answers, settings.batch_size)
            rates = [
                learning_rate(number, t, peak=settings.learning_rate, warmup=settings.warmup)
                if number < t
                else 0.0
                for t in total
            ]
            state, loss = step(
                state,
                base.params,
                place(batch, base.mesh, rules),
                jnp.asarray(live),
                scale,
                jnp.asarray(rates, jnp.float32),
            )
            # One step behind, so that reading the loss does not hold the device up.
            if pending is not None:
                progress.update(loss=_record(lines, *pending))
            pending = (number, [names[i] for i in live], loss, [sum(map(len, g)) for g in groups])
        progress.update(loss=_record(lines, *pending))
    by_layer = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), state.lora)
    return unstack(by_layer, names=names, scale=settings.alpha / settings.rank, base=base.name)


def place(batch: Mapping[str, np.ndarray], mesh: Mesh, rules: Rules) -> dict[str, jax.Array]:
    """Puts the arrays of a batch, each [g, b, ...], on the devices, spread as the rules say."""
    placed = {}
    for name, value in batch.items():
        axes = ("groups", "rows", *(None,) * (value.ndim - 2))
        placed[name] = jax.device_put(value, rules.sharding(mesh, axes, value.shape))
    return placed


def _record(lines, number: int, names: list[str], loss: jax.Array, tokens: list[int]) -> float:
    """Writes one line of the step log and returns the mean loss."""
    values = np.asarray(loss).tolist()
    for name, value in zip(names, values, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss of adapter {name!r} is {value} at step {number}; "
                "lower the learning rate or look at its rows"
            )
    line = {
        "step": number,
        "loss": dict(zip(names, values, strict=True)),
        "tokens": dict(zip(names, tokens, strict=True)),
    }
    lines.write(json.dumps(line) + "\n")
    return sum(values) / len(values)
