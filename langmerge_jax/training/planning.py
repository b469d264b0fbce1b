"""What a step would take of devices that need not be there: memory as compiled, time at best."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from langmerge_jax.models.checkpoint import Base
from langmerge_jax.parallel.memory import USABLE, peak_beside
from langmerge_jax.parallel.mesh import Rules
from langmerge_jax.parallel.topologies import Chip
from langmerge_jax.training.arguments import abstract_arguments
from langmerge_jax.training.flops import recomputed_flops, step_flops
from langmerge_jax.training.loop import Trainer
from langmerge_jax.training.programs import AdapterPrograms, optimizer_of
from langmerge_jax.training.settings import TrainSettings
from langmerge_jax.training.step import Division, Shape, in_pieces
from langmerge_jax.training.steps import Step


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes of one device that a step takes.

    Attributes:
      division: of the batch, the first that fits, or the one of the most parts.
      arguments: {kind: bytes}: base, adapters, optimizer, best, batch; and what the devices' layout
        of these adds, padding.
      beside: temporaries, and results that take over no argument's memory.
      free: what of the device's memory the arguments leave, as training counts on it; below 0 where
        they do not fit, and nothing was compiled.
      seconds: spent on compiling.
    """

    division: Division
    arguments: Mapping[str, float]
    beside: float
    free: float
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the step can be taken."""
        return self.beside <= self.free

    @property
    def total(self) -> float:
        """Arguments and what comes beside."""
        return sum(self.arguments.values()) + self.beside


def step_memory(base: Base, settings: TrainSettings, shape: Shape, memory: float) -> StepMemory:
    """Compiles the step of a training, its batch cut into as few parts as fit.

    Args:
      base: with weights or with shapes in their place.
      settings: of the training; its `accumulation` is the least number of parts.
      shape: of a batch in which each adapter has a group.
      memory: bytes of a device.
    """
    (groups, rows, _), _ = shape
    programs = AdapterPrograms(base, settings, optimizer_of(settings), groups)
    seconds = 0.0
    for division in programs.ways(groups, rows, settings.accumulation):
        given = abstract_arguments(
            programs.state, base.params, settings, base.mesh, shape, division
        )
        kinds = argument_bytes(given)
        if (free := USABLE * (memory - sum(kinds.values()))) < 0:
            # Parts of a batch make none of these smaller.
            return StepMemory(division, kinds, 0.0, free, seconds)
        beside, spent = programs.step.compile((shape, division), *given)
        seconds += spent
        if (shape, division) in programs.step:
            compiled = programs.step.sizes((shape, division)).argument_size_in_bytes
            kinds["padding"] = compiled - sum(kinds.values())
        free = USABLE * (memory - sum(kinds.values()))
        found = StepMemory(division, kinds, beside, free, seconds)
        if found.fits:
            break
    return found


def argument_bytes(arguments: tuple) -> dict[str, float]:
    """Returns the bytes of one device that a step's arguments take, by kind, without padding.

    Args:
      arguments: of the step, arrays or shapes.
    """
    state, base, *batch = arguments
    kinds = {
        "base": base,
        "adapters": state.lora,
        "optimizer": state.optimizer,
        "best": (state.best, state.best_loss),
        "batch": batch,
    }
    return {kind: sum(map(_bytes, jax.tree.leaves(tree))) for kind, tree in kinds.items()}


def _bytes(x: Any) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least seconds of a step by what could bound it, each as if the others took none.

    Attributes:
      flops: products, those computed again too.
      memory: bytes to and from the device's memory.
      links: bytes from other devices; 0 where their speed is not known.
    """

    flops: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The longest of them."""
        return max(self.flops, self.memory, self.links)


def roofline(
    base: Base, settings: TrainSettings, shape: Shape, division: Division, chip: Chip
) -> Roofline:
    """Counts the least that a step has to do on each device.

    Padding is computed like tokens, and rows that the mesh does not share out on every device that
    has them. Weights of a layer are read in every pass, and what other devices of `fsdp` have of
    them comes over the links; with `tensor` the sums behind attention and MLP do. Of the memory's
    traffic that of the layers' outputs and the optimizer is counted, no temporaries.

    Args:
      base: with weights or with shapes in their place.
      settings: of the training.
      shape: of the batch.
      division: of the batch.
      chip: one of the devices.
    """
    (groups, rows, length), (_, _, targets) = shape
    config, sizes, devices = base.config, base.mesh.shape, base.mesh.size
    shares = row_shares(base.mesh, rows // division.rows)
    spec, lengths = settings.lora(groups), [length] * (groups * rows)
    predicted = groups * rows * targets
    flops = step_flops(config, spec, lengths=lengths, targets=predicted).total
    again = predicted if in_pieces(shape, division, config.vocab_size) else 0
    flops += recomputed_flops(config, spec, lengths=lengths, targets=again, remat=settings.remat)
    item = jnp.dtype(base.dtype).itemsize
    layers = sum(
        math.prod(leaf.shape) * item
        for path, leaf in nnx.to_flat_state(base.params)
        if path[0] == "layers"
    )
    passes = math.prod(division) * (2 if settings.remat != "layer" else 3)
    factors = 4 * config.num_hidden_layers * groups * settings.rank
    factors *= sum(sum(config.projections()[name]) for name in settings.targets)
    # Of one device: the outputs of a layer.
    outputs = groups * rows * length * config.hidden_size * item / shares
    memory = (
        passes * layers / sizes["tensor"]
        # Factors and two moments are read and written, a gradient is written and read.
        + 8 * factors / (sizes["fsdp"] * sizes["tensor"])
        + 2 * config.num_hidden_layers * outputs
    )
    apart = {axis: (size - 1) / size for axis, size in sizes.items()}
    # Weights in every pass; the factors' gradients; the sums behind attention and MLP, each as its
    # parts and as a whole.
    links = passes * apart["fsdp"] * layers / sizes["tensor"]
    links += 2 * factors * (devices - 1) / devices
    sums = (passes // math.prod(division)) * 2 * config.num_hidden_layers * outputs
    links += 2 * apart["tensor"] * sums
    return Roofline(
        flops / (shares * sizes["tensor"]) / chip.flops,
        memory / chip.bandwidth,
        links / chip.links if chip.links else 0.0,
    )


def row_shares(mesh: Mesh, rows: int) -> int:
    """Returns into how many shares a mesh spreads rows; where it does not, devices do the same."""
    (axes,) = Rules().spec(("rows",), (rows,), mesh)
    return math.prod(mesh.shape[axis] for axis in axes or ())


@dataclasses.dataclass(frozen=True)
class MeasuredStep:
    """A step as it was taken.

    Attributes:
      seconds: the least of several.
      beside: bytes of a device that it took beside its arguments; None if the system does not tell.
    """

    seconds: float
    beside: float | None


def measure_step(trainer: Trainer, step: Step, mesh: Mesh, repeats: int = 3) -> MeasuredStep:
    """Takes a step of a training several times, compiled before."""
    state, advance = trainer.begin(step.names)
    taken = []

    def take() -> None:
        nonlocal state
        start = time.perf_counter()
        state, _, _ = jax.block_until_ready(advance(state, step))
        taken.append(time.perf_counter() - start)

    def repeat() -> None:
        for _ in range(repeats):
            take()

    take()
    beside = peak_beside(mesh, repeat)
    return MeasuredStep(min(taken[1:]), beside)
