"""Devices as a mesh, and which array axis lies on which mesh axis."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from langmerge_jax.errors import InputError

PyTree = Any

MESH_AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Rules:
    """Mesh axes of each logical axis; an axis not named here is on every device whole.

    Groups and rows are spread over `data` and `fsdp`, adapters are not split by number (a mesh
    need not divide it) but by their `embed` axis, as the base weights are. Between two layers the
    positions of a row are spread over `tensor`, whose devices would else hold all of them alike.

    References: sequence parallelism, Korthikanti et al. (arXiv 2205.05198), section 4.2.
    """

    groups: tuple[str, ...] | str | None = None
    rows: tuple[str, ...] | str | None = ("data", "fsdp")
    positions: tuple[str, ...] | str | None = "tensor"
    embed: tuple[str, ...] | str | None = "fsdp"
    heads: tuple[str, ...] | str | None = "tensor"
    mlp: tuple[str, ...] | str | None = "tensor"
    vocab: tuple[str, ...] | str | None = "tensor"

    def spec(self, axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh):
        """Returns the PartitionSpec of an array with these logical axes.

        Of several mesh axes those are taken that divide the size into the most parts; where none
        does the axis stays whole: a vocabulary of odd size must not stop a run.
        """
        entries = []
        for name, size in zip(axes, shape, strict=True):
            placed = getattr(self, name, None) if name else None
            names = (placed,) if isinstance(placed, str) else placed or ()
            some = itertools.chain.from_iterable(
                itertools.combinations(names, count) for count in range(len(names), 0, -1)
            )
            parts = {x: math.prod(mesh.shape[axis] for axis in x) for x in some}
            fitting = [x for x, count in parts.items() if count > 1 and size % count == 0]
            entries.append(max(fitting, key=parts.__getitem__, default=None))
        return PartitionSpec(*entries)

    def sharding(self, mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]):
        """Returns the NamedSharding of an array with these logical axes."""
        return NamedSharding(mesh, self.spec(axes, shape, mesh))


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Arranges devices as a mesh `data` x `fsdp` x `tensor`.

    Args:
      data, fsdp, tensor: devices along each axis; one of them may be -1, "all that are left".
      devices: all of this job by default.

    Raises:
      InputError: if the product is not the number of devices.
    """
    sizes = [data, fsdp, tensor]
    count = jax.device_count() if devices is None else len(devices)
    given = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and given > 0 and count % given == 0:
        sizes[sizes.index(-1)] = count // given
    if min(sizes) < 1 or math.prod(sizes) != count:
        raise InputError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not arrange {count} devices; "
            "the product must be their number, and one size may be -1"
        )
    axis_types = (AxisType.Auto,) * 3
    try:
        return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=axis_types, devices=devices)
    except NotImplementedError as error:  # Links of a TPU slice that no axis can follow.
        raise InputError(
            f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} does not follow the links of "
            "this TPU slice; take sizes that are products of its sides"
        ) from error


def batch_shardings(
    batch: Mapping[str, np.ndarray | jax.Array], mesh: Mesh, rules: Rules, *, parts: bool = False
) -> dict[str, NamedSharding]:
    """Returns where the arrays of a batch lie.

    Args:
      batch: arrays [g, b, ...], or with `parts` [p, g, b, ...].
      parts: whether the batch is cut into parts that follow one another.
    """

    def where(x: np.ndarray | jax.Array) -> NamedSharding:
        axes = (*(None,) * parts, "groups", "rows")
        return rules.sharding(mesh, (*axes, *(None,) * (x.ndim - len(axes))), x.shape)

    return {name: where(x) for name, x in batch.items()}


def place(
    batch: Mapping[str, np.ndarray | jax.Array], mesh: Mesh, rules: Rules
) -> dict[str, jax.Array]:
    """Puts the arrays [g, b, ...] of a batch on the devices, spread as the rules say."""
    return put(dict(batch), batch_shardings(batch, mesh, rules))


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Puts arrays that every process has whole where the shardings say."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    # Each hands over its own parts.
    return jax.tree.map(
        lambda x, where: jax.make_array_from_callback(x.shape, where, np.asarray(x).__getitem__),
        tree,
        shardings,
    )
