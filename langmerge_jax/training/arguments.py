"""What a step is given beside its state and the base, as arrays here or as shapes alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from langmerge_jax.models.lora import Active
from langmerge_jax.parallel.mesh import PyTree, Rules, batch_shardings
from langmerge_jax.training.settings import TrainSettings
from langmerge_jax.training.step import Division, TrainState, cut


def batch_arguments(
    arrays: Mapping[str, np.ndarray],
    live: Sequence[int],
    rates: Sequence[float],
    division: Division,
    *,
    n: int,
    scale: float,
) -> tuple[dict[str, np.ndarray], Active, np.ndarray, np.ndarray, np.ndarray]:
    """Returns what `step.make_step` asks for behind the base, without dropout's keys.

    Args:
      arrays: of `data.batching.pad`.
      live: the adapters of the groups.
      rates: their learning rates.
      division: of the batch.
      n: adapters in the state.
      scale: of their deltas.
    """
    rows = arrays["tokens"].shape[1]
    rate, count = np.zeros(n, np.float32), np.ones(n, np.float32)
    rate[list(live)] = rates
    count[list(live)] = np.maximum(arrays["weight"].sum(axis=(1, 2)), 1)
    adapters = np.asarray(live, np.int32)
    # Of each part, whichever rows it has of them.
    ids = cut(np.repeat(adapters[:, None], rows, axis=1), division)[:, :, 0]
    batch = {name: cut(x, division) for name, x in arrays.items()}
    return batch, Active(ids, np.full(n, scale, np.float32)), adapters, count, rate


def where_batch_lies(arguments: tuple, mesh: Mesh) -> PyTree:
    """Returns the shardings of what `batch_arguments` returns: rows are spread, the rest is not."""
    batch, *rest = arguments
    whole = Rules().sharding(mesh, (), ())
    spread = batch_shardings(batch, mesh, Rules(), parts=True)
    return spread, *jax.tree.map(lambda _: whole, tuple(rest))


def dropout_keys(seeds: jax.Array, step: int, rows: int, division: Division) -> jax.Array:
    """Random keys of adapters with these seeds, one a row, cut like the batch.

    What is dropped is the adapter's own affair, and the row's.
    """

    def key(seed, row):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), row)

    return cut(jax.vmap(jax.vmap(key, (None, 0)), (0, None))(seeds, jnp.arange(rows)), division)


def abstract_arguments(
    state: TrainState,
    base: PyTree,
    settings: TrainSettings,
    mesh: Mesh,
    shape: tuple[tuple[int, int, int], tuple[int, int, int]],
    division: Division,
) -> tuple[Any, ...]:
    """Returns all arguments of a step as shapes, with their dtypes and where they lie.

    Args:
      state: of n adapters, all of which train: `AdapterPrograms.state`.
      base: the model's state, arrays or shapes.
      settings: of the training.
      mesh: the devices.
      shape: of the batch's tokens [g, b, s] and targets [g, b, t], with g = n.
      division: of the batch.
    """
    tokens, targets = shape
    arrays = {name: np.zeros(targets, np.int32) for name in ("target_index", "target")}
    arrays |= {"tokens": np.zeros(tokens, np.int32), "weight": np.zeros(targets, np.float32)}
    if settings.packing:
        arrays |= {name: np.zeros(tokens, np.int32) for name in ("segments", "positions")}
    groups, rows, _ = tokens
    rest = batch_arguments(
        arrays, range(groups), [0.0] * groups, division, n=groups, scale=settings.scale
    )
    batch, active, *others = jax.tree.map(abstract, rest, where_batch_lies(rest, mesh))
    if settings.dropout:
        keys = jax.eval_shape(
            lambda seeds: dropout_keys(seeds, 0, rows, division), np.zeros(groups, np.uint32)
        )
        active.keys = abstract(keys, Rules().sharding(mesh, (), ()))
    return state, base, batch, active, *others


def abstract(x: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of an array, and where it is to lie."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
