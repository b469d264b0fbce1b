"""What training compiles, and how much memory it takes."""

import functools
import logging
import math
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding

from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.stacking import split_lora, swap_leading
from langmerge_jax.parallel.memory import asked_for, free_memory, human
from langmerge_jax.parallel.mesh import Rules
from langmerge_jax.parallel.processes import all_agree
from langmerge_jax.training.arguments import abstract as abstract_array
from langmerge_jax.training.settings import TrainSettings
from langmerge_jax.training.step import (
    Division,
    TrainState,
    batch_losses,
    divisions,
    keep_best,
    make_optimizer,
    make_step,
)

logger = logging.getLogger(__name__)


def optimizer_of(settings: TrainSettings) -> optax.GradientTransformation:
    """Returns the optimizer that the settings ask for."""
    return make_optimizer(
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
    )


class Program:
    """A function compiled once for each shape of its arguments.

    Args:
      function: to be compiled.
      donate: places of the arguments whose memory it may take over.
      out_shardings: of what it returns.
    """

    def __init__(self, function: Callable, *, donate: tuple[int, ...], out_shardings: Any):
        self._jitted = jax.jit(function, donate_argnums=donate, out_shardings=out_shardings)
        self._compiled: dict[Hashable, Callable] = {}

    def compile(self, shape: Hashable, *args: Any) -> tuple[float, float]:
        """Compiles the function for arguments like these.

        Args:
          shape: stands for the shapes of all arguments.
          *args: of the function.

        Returns:
          The bytes that it takes on each device beside its arguments; where the compiler finds that
          they are not there, what it says is needed, infinite if it does not say. And the seconds
          that compiling took.
        """
        start = time.monotonic()
        try:
            compiled = self._jitted.lower(*args).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return asked_for(str(error)), time.monotonic() - start
        self._compiled[shape] = compiled
        sizes = compiled.memory_analysis()
        needed = sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        return needed, time.monotonic() - start

    def sizes(self, shape: Hashable) -> Any:
        """Returns the compiler's account of a device's memory, for a shape compiled before."""
        return self._compiled[shape].memory_analysis()

    def __call__(self, shape: Hashable, *args: Any) -> Any:
        """Returns what the function does, compiled for this shape before."""
        return self._compiled[shape](*args)

    def __contains__(self, shape: Hashable) -> bool:
        return shape in self._compiled


class AdapterPrograms:
    """What is compiled for n adapters at a time.

    Attributes:
      where: shardings of a `TrainState`: factors lie as the weights they stand beside, and what
        the optimizer keeps of them likewise.
      state: such a state as shapes.
      step: of `make_step`, by shapes and division of the batch.
      losses: of `batch_losses`, without its graph, likewise.
      keep_best: of `step.keep_best`.
    """

    def __init__(
        self, base: Base, settings: TrainSettings, tx: optax.GradientTransformation, n: int
    ):
        graph, abstract = split_lora(
            base.config,
            settings.lora(n),
            base.dtype,
            remat=settings.remat,
            attention=base.attention,
        )
        rules, self._mesh = Rules(), base.mesh
        whole = rules.sharding(base.mesh, (), ())

        def sharding(leaf) -> NamedSharding:
            """Of a factor [n, l, ...]; the model has it as [l, n, ...]."""
            (layers, adapters, *axes), (count, n, *shape) = leaf.get_metadata()["axes"], leaf.shape
            return rules.sharding(base.mesh, (adapters, layers, *axes), (n, count, *shape))

        lora = nnx.from_flat_state(
            [(path, leaf.replace(sharding(leaf))) for path, leaf in nnx.to_flat_state(abstract)]
        )
        optimizer = optax.tree.map_params(
            tx,
            lambda _, where: where,
            jax.eval_shape(jax.vmap(tx.init), abstract),
            lora,
            transform_non_params=lambda _: whole,
        )
        best = (None, None) if settings.keep == "last" else (lora, whole)
        self.where = TrainState(lora, optimizer, *best)
        factors = jax.eval_shape(swap_leading, abstract)
        moments = jax.eval_shape(jax.vmap(tx.init), factors)
        kept = (factors, jax.ShapeDtypeStruct((n,), jnp.float32)) if best[0] else (None, None)
        self.state = jax.tree.map(abstract_array, TrainState(factors, moments, *kept), self.where)
        self.step = Program(make_step(graph, tx), donate=(0,), out_shardings=(self.where, whole))
        losses = functools.partial(batch_losses, graph)
        self.losses = Program(losses, donate=(), out_shardings=whole)
        self.keep_best = jax.jit(keep_best, donate_argnums=0, out_shardings=self.where)
        self._divisions: dict[Hashable, Division] = {}

    def ways(self, groups: int, rows: int, least: int) -> list[Division]:
        """Returns the ways to cut a batch into at least so many parts, or the most there can be."""
        devices = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        ways = divisions(groups, rows, devices)
        return [way for way in ways if math.prod(way) >= least] or ways[-1:]

    def divide(
        self, program: Program, shape: tuple, least: int, arguments: Callable[[Division], tuple]
    ) -> tuple[Division, float]:
        """Returns the first way to cut a batch with which a program fits the memory, compiled.

        Args:
          program: `step` or `losses`.
          shape: of the batch's tokens [g, b, s] and targets.
          least: parts, at least, or the most there can be.
          arguments: those of the program, for a division.

        Returns:
          the division, and seconds spent on compiling.

        Raises:
          InputError: if none fits.
        """
        if (program, shape) in self._divisions:
            return self._divisions[program, shape], 0.0
        groups, rows, length = shape[0]
        seconds = 0.0
        for way in self.ways(groups, rows, least):
            needed, spent = program.compile((shape, way), *arguments(way))
            seconds += spent
            free = free_memory(self._mesh)
            what = f"{groups} x {rows} rows of {length} tokens"
            if (parts := math.prod(way)) > 1:
                what += f" in {parts} parts"
            if all_agree(needed <= free):
                logger.info("compiled in %.1f s: %s, %s", spent, what, human(needed))
                self._divisions[program, shape] = way
                return way, seconds
            logger.info("%s needs %s, %s are free", what, human(needed), human(free))
        raise InputError(
            f"{what} needs {human(needed)} of a device's memory, "
            f"{human(free)} are free; take train.remat='layer', a shorter task.max_length, or "
            "spread the model over more devices (mesh.fsdp, mesh.tensor); python -m "
            "langmerge_jax.plan --config=… says beforehand what fits"
        )

    def compiled_step(self, shape: tuple) -> tuple[Division, Any]:
        """Returns how a batch of the step was cut, and the compiler's account of a device's memory.

        Args:
          shape: as of `divide`, which came before.
        """
        division = self._divisions[self.step, shape]
        return division, self.step.sizes((shape, division))
