"""Trains n adapters in one program over one frozen base."""

import collections
import functools
import logging
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langmerge_jax.adapters import Adapter
from langmerge_jax.data.batching import bucket
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.lora import Active
from langmerge_jax.models.stacking import init_lora, stack, swap_leading, unstack
from langmerge_jax.parallel.mesh import PyTree, Rules, place, put
from langmerge_jax.parallel.processes import leads
from langmerge_jax.training.arguments import batch_arguments, dropout_keys, where_batch_lies
from langmerge_jax.training.batches import adapter_steps, steps_of, validation_batches
from langmerge_jax.training.checkpoint import Checkpoints
from langmerge_jax.training.flops import peak_flops, step_flops
from langmerge_jax.training.profile import Profile
from langmerge_jax.training.programs import AdapterPrograms, optimizer_of
from langmerge_jax.training.settings import TrainSettings, adapter_seed
from langmerge_jax.training.step import Division, TrainState, cut
from langmerge_jax.training.steplog import Logs, StepLog
from langmerge_jax.training.steps import CHECKPOINTS, STEPS, Step, run_steps
from langmerge_jax.training.tensorboard import TensorBoard

logger = logging.getLogger(__name__)

TENSORBOARD, PROFILE = "tensorboard", "profile"


class Trainer:
    """Trains adapters over one frozen base; what was compiled for one training serves the next.

    Args:
      base: the frozen model.
      settings: hyper-parameters, shared by all adapters.
      tensorboard: whether each training writes event files for TensorBoard.
      profile: steps of each training that jax's profiler records.

    Raises:
      InputError: for packing, where attention would look across examples.
    """

    def __init__(
        self,
        base: Base,
        settings: TrainSettings,
        *,
        tensorboard: bool = False,
        profile: range = range(0),
    ):
        if settings.packing and not base.attention.knows_segments:
            raise InputError(
                f"train.packing: attention {base.attention.backend!r} cannot keep the examples of "
                "a row apart; choose another attention, or train without packing"
            )
        for asked in sorted(set(settings.buckets) - set(settings.lengths)):
            logger.info("train.buckets: %d is padded to %d", asked, bucket(asked, settings.lengths))
        self._base, self._settings = base, settings
        self._tensorboard, self._profile = tensorboard, profile
        self._whole = Rules().sharding(base.mesh, (), ())
        self._tx = optimizer_of(settings)
        self._keys = jax.jit(dropout_keys, static_argnums=(2, 3), out_shardings=self._whole)
        self._programs: dict[int, AdapterPrograms] = {}

    def train(
        self,
        data: Mapping[str, Sequence[Encoded]],
        folder: pathlib.Path,
        *,
        validation: Mapping[str, Sequence[Encoded]] | None = None,
        start: Mapping[str, Adapter] | None = None,
        load_seconds: float = 0.0,
    ) -> dict[str, Adapter]:
        """Trains one adapter for each entry of `data`, all in one program.

        An adapter with fewer rows ends earlier: its group leaves the batch. Which adapters train
        beside it changes nothing in its result but rounding.

        Args:
          data: {adapter name: its encoded rows}.
          folder: of this training alone: receives the step log `steps.jsonl`, `tensorboard/`,
            `profile/` and checkpoints. If it holds the checkpoints of a killed run, the training
            goes on from the newest.
          validation: {adapter name: encoded rows that the best epoch is chosen by}, needed where
            the settings keep the best.
          start: adapters to go on from, of the same rank and scale, instead of fresh ones.
          load_seconds: what was spent on loading before, for the log.

        Returns:
          {adapter name: Adapter}.

        Raises:
          FloatingPointError: if a loss is not finite.
          InputError: if an adapter to go on from has another rank or scale, if the best is to be
            kept and rows to tell it by are missing, or if a step does not fit the memory.
        """
        names, settings, base = sorted(data), self._settings, self._base
        _check_rows(data, settings)
        validate = None
        if settings.keep == "best":
            _check_rows(validation or {}, settings)
            if missing := [name for name in names if not (validation or {}).get(name)]:
                raise InputError(
                    f"adapter {missing[0]!r} has no validation rows to choose its best epoch by; "
                    "bring some, or set train.keep='last'"
                )
            validate = functools.partial(self._validate, names, validation)
        state, advance = self.begin(names, start)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            StepLog(folder / STEPS, writes=leads()) as log,
            TensorBoard(folder / TENSORBOARD, writes=leads() and self._tensorboard) as board,
        ):
            state = run_steps(
                f"train {', '.join(names)}",
                state,
                adapter_steps(data, settings, base.mesh),
                max(steps_of(data, settings).values()),
                advance,
                validate=validate,
                log=Logs(log, board),
                checkpoints=Checkpoints(folder / CHECKPOINTS, settings.checkpoint_steps),
                load_seconds=load_seconds,
                flops=self._flops,
                peak=peak_flops(base.mesh.devices.flat[0].device_kind, base.dtype),
                profile=Profile(folder / PROFILE, self._profile) if leads() else None,
            )
        found = state.best if validate else state.lora
        by_layer = jax.jit(swap_leading, out_shardings=self._whole)(found)
        return unstack(by_layer, names=names, scale=settings.scale, base=base.name)

    def begin(
        self, names: Sequence[str], start: Mapping[str, Adapter] | None = None
    ) -> tuple[TrainState, Callable[[TrainState, Step], tuple[TrainState, jax.Array, float]]]:
        """Returns what a training starts from, and the function that takes one step of it.

        Args:
          names: of the adapters.
          start: adapters to go on from, of the same rank and scale, instead of fresh ones.

        Returns:
          The first state, and (state, step) -> (state, loss [g], seconds spent on compiling), which
          takes over the memory of the state it is given.

        Raises:
          InputError: if an adapter to go on from has another rank or scale.
        """
        state = self._fresh(names, start)
        return state, self._advance(names)

    def compiled_step(self, step: Step) -> tuple[Division, Any]:
        """Returns how the batch of a step was cut, and the compiler's account of a device's memory.

        Args:
          step: one that was taken, in which each adapter of its training has a group.
        """
        return self._of(len(step.names)).compiled_step(step.shape)

    def time_alone(
        self, data: Mapping[str, Sequence[Encoded]], rounds: int = 5, timed: int = 4
    ) -> dict[str, dict[str, Any]]:
        """Times warm steps of training each adapter on its own, and scales them by their number.

        Args:
          data: {adapter name: its encoded rows}.
          rounds: the adapters take turns, so that a machine that is slower for a while is so for
            all; the median over rounds counts.
          timed: steps of each shape in a round, or as many as there are.

        Returns:
          {adapter name: {seconds: of the whole training, as scaled; steps: {rows x length: number};
          seconds_a_step: {rows x length: median}}}.
        """
        steps: dict[str, dict[str, list[Step]]] = {name: {} for name in data}
        counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in data}
        for name, rows in data.items():
            for step in adapter_steps({name: rows}, self._settings, self._base.mesh):
                _, count, length = step.arrays["tokens"].shape
                shape = f"{count} x {length}"
                counts[name][shape] += 1
                if counts[name][shape] <= timed:
                    steps[name].setdefault(shape, []).append(step)
        states, advances = {}, {}
        for name in data:
            states[name], advances[name] = self.begin([name])
        seconds: dict[tuple[str, str], list[float]] = {}
        for turn in range(rounds + 1):
            for name, by_shape in steps.items():
                for shape, some in by_shape.items():
                    start = time.monotonic()
                    for step in some:
                        states[name], loss, _ = advances[name](states[name], step)
                        loss.block_until_ready()
                    if turn:  # The first is to warm up.
                        spent = (time.monotonic() - start) / len(some)
                        seconds.setdefault((name, shape), []).append(spent)
        found = {}
        for name, taken in counts.items():
            medians = {shape: statistics.median(seconds[name, shape]) for shape in taken}
            found[name] = {
                "seconds": sum(count * medians[shape] for shape, count in taken.items()),
                "steps": dict(taken),
                "seconds_a_step": medians,
            }
        return found

    def _fresh(self, names: Sequence[str], start: Mapping[str, Adapter] | None) -> TrainState:
        settings, base = self._settings, self._base
        spec, where = settings.lora(len(names)), self._of(len(names)).where
        if start:
            _check_same_shape(start, settings)
            lora = stack({n: start[n] for n in names}, base.config, spec, base.dtype, scaled=False)
            lora = swap_leading(lora)
        else:
            lora = init_lora(base.config, spec, [adapter_seed(n, settings.seed) for n in names])
        lora = put(lora, where.lora)
        optimizer = jax.jit(jax.vmap(self._tx.init), out_shardings=where.optimizer)(lora)
        if settings.keep == "last":
            return TrainState(lora, optimizer)
        # A copy: each array is given over to the step on its own.
        best = jax.jit(lambda lora: jax.tree.map(jnp.copy, lora), out_shardings=where.lora)(lora)
        return TrainState(lora, optimizer, best, self._put(np.full(len(names), np.inf)))

    def _advance(self, names: Sequence[str]) -> Callable:
        settings, base = self._settings, self._base
        programs = self._of(len(names))
        seeds = np.array([adapter_seed(name, settings.seed) for name in names], np.uint32)

        def advance(state: TrainState, step: Step) -> tuple[TrainState, jax.Array, float]:
            live = [names.index(name) for name in step.names]
            rows = step.arrays["tokens"].shape[1]

            def arguments(division: Division) -> tuple:
                rest = batch_arguments(
                    step.arrays, live, step.rates, division, n=len(names), scale=settings.scale
                )
                batch, active, *others = put(rest, where_batch_lies(rest, base.mesh))
                if settings.dropout:
                    active.keys = self._keys(seeds[live], step.number, rows, division)
                return state, base.params, batch, active, *others

            division, compiling = programs.divide(
                programs.step, step.shape, settings.accumulation, arguments
            )
            state, loss = programs.step((step.shape, division), *arguments(division))
            return state, loss, compiling

        return advance

    def _flops(self, step: Step) -> int:
        spec, targets = self._settings.lora(len(step.names)), step.arrays["weight"]
        counted = step_flops(
            self._base.config, spec, lengths=step.lengths, targets=int(np.count_nonzero(targets))
        )
        return counted.total

    def _validate(
        self,
        names: Sequence[str],
        validation: Mapping[str, Sequence[Encoded]],
        state: TrainState,
        ended: Sequence[str],
    ) -> tuple[TrainState, dict[str, float]]:
        """Takes the losses of adapters that ended an epoch, and keeps those that are best."""
        settings, programs = self._settings, self._of(len(names))
        scale = self._put(np.full(len(names), settings.scale))
        found = {}
        for name in ended:
            number = names.index(name)
            active = Active(self._put([number], np.int32), scale)
            total, count = 0.0, 0.0
            for arrays in validation_batches(validation[name], settings):
                total += self._summed_loss(programs, state.lora, active, arrays)
                count += float(arrays["weight"].sum())
            found[name] = total / count
            if not math.isfinite(found[name]):
                raise FloatingPointError(
                    f"the loss of adapter {name!r} on validation is {found[name]}; lower the "
                    "learning rate, in another workdir"
                )
            state = programs.keep_best(state, self._put(number, np.int32), self._put(found[name]))
        return state, found

    def _summed_loss(
        self,
        programs: AdapterPrograms,
        lora: PyTree,
        active: Active,
        batch: Mapping[str, np.ndarray],
    ) -> float:
        """The losses of a batch of one adapter, in as many parts as the memory asks for."""
        base = self._base

        def arguments(division: Division, part: int = 0) -> tuple:
            arrays = {name: cut(x, division)[part] for name, x in batch.items()}
            return lora, base.params, place(arrays, base.mesh, Rules()), active

        shape = (batch["tokens"].shape, batch["target"].shape)
        division, _ = programs.divide(programs.losses, shape, 1, arguments)
        return sum(
            float(programs.losses((shape, division), *arguments(division, part))[0])
            for part in range(division.rows)
        )

    def _put(self, values, dtype=np.float32) -> jax.Array:
        return put(np.asarray(values, dtype), self._whole)

    def _of(self, n: int) -> AdapterPrograms:
        if n not in self._programs:
            self._programs[n] = AdapterPrograms(self._base, self._settings, self._tx, n)
        return self._programs[n]


def _check_rows(data: Mapping[str, Sequence[Encoded]], settings: TrainSettings) -> None:
    for name, rows in data.items():
        if not rows:
            raise InputError(f"adapter {name!r} has no rows; bring some, or leave it out")
        longest = max(rows, key=len)
        if len(longest) > settings.lengths[-1]:
            raise InputError(
                f"adapter {name!r}: row {longest.id} has {len(longest)} tokens, the longest of "
                f"train.buckets={settings.buckets} is shorter; add a longer one, or lower "
                "task.max_length"
            )


def _check_same_shape(start: Mapping[str, Adapter], settings: TrainSettings) -> None:
    scale = settings.scale
    for name, adapter in start.items():
        for module, factors in adapter.modules.items():
            if factors.rank != settings.rank or not math.isclose(factors.scale, scale):
                raise InputError(
                    f"adapter {name!r}: {module} has rank {factors.rank} and scale "
                    f"{factors.scale:g}, the config's are {settings.rank} and {scale:g}; an "
                    "adapter of another shape cannot be trained further, train it anew"
                )
