"""Trains n adapters in one program over one frozen base."""

import dataclasses
import math
import pathlib
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langmerge_jax.adapters import Adapter
from langmerge_jax.data.batching import bucket, pad, steps_per_epoch, training_batches
from langmerge_jax.data.tasks import Encoded
from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.llama import REMAT
from langmerge_jax.models.lora import Active, LoraSpec
from langmerge_jax.models.stacking import init_lora, split_lora, stack, unstack
from langmerge_jax.parallel.mesh import Rules, place
from langmerge_jax.training.checkpoint import Checkpoints
from langmerge_jax.training.step import TrainState, learning_rate, make_optimizer, make_step
from langmerge_jax.training.steplog import StepLog
from langmerge_jax.training.steps import CHECKPOINTS, STEPS, Program, Step, run_steps

LOSSES = ("answers", "all")

# Settings that an adapter may have of its own.
OWN = ("epochs", "learning_rate", "warmup")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How adapters are trained; the paper's numbers stand in `langmerge_jax.config`.

    Attributes:
      rank, alpha: of LoRA; scale = alpha / rank, or alpha / sqrt(rank) with `rslora`.
      rslora: rank-stabilised LoRA (arXiv 2312.03732).
      dropout: of the inputs of A.
      targets: projections that carry an adapter.
      epochs, batch_size: batch_size rows of each adapter a step.
      learning_rate: peak; warmup: share of the steps.
      b1, b2, eps, weight_decay, max_grad_norm: AdamW and clipping, an adapter.
      buckets: sequence lengths a batch is padded to.
      loss: on the tokens of the `answers`, or on `all`, the prompts' too.
      remat: what is computed again in the backward pass, one of `llama.REMAT`.
      checkpoint_steps: steps that a killed training does again, at most.
      seed: of initial factors and of the order of rows.
      own: where single adapters differ: {adapter name: {one of `OWN`: value}}.
    """

    rank: int
    alpha: float
    rslora: bool
    dropout: float
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
    loss: str
    remat: str
    checkpoint_steps: int
    seed: int
    own: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, value, known in (("loss", self.loss, LOSSES), ("remat", self.remat, REMAT)):
            if value not in known:
                raise InputError(f"train.{name}={value!r}: choose among {', '.join(known)}")
        for name, settings in self.own.items():
            if unknown := set(settings) - set(OWN):
                raise InputError(
                    f"train.own.{name}.{min(unknown)}: an adapter may have {', '.join(OWN)} of its "
                    "own"
                )

    def of(self, name: str) -> "TrainSettings":
        """Returns the settings of one adapter."""
        return dataclasses.replace(self, **self.own.get(name, {}), own={})

    @property
    def scale(self) -> float:
        """What a delta is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def lora(self, n: int) -> LoraSpec:
        """Returns the shape of n adapters."""
        return LoraSpec(n, self.rank, self.targets, self.dropout)


def adapter_seed(name: str, seed: int) -> int:
    """Returns the seed of one adapter's initial factors, whatever is trained beside it."""
    return zlib.crc32(f"{seed}/{name}".encode())


class Trainer:
    """Trains adapters over one frozen base; what was compiled for one training serves the next.

    Args:
      base: the frozen model.
      settings: hyper-parameters, shared by all adapters.
    """

    def __init__(self, base: Base, settings: TrainSettings):
        self._base, self._settings = base, settings
        self._whole = Rules().sharding(base.mesh, (), ())
        self._tx = make_optimizer(
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
        )
        self._keys = jax.jit(_dropout_keys, out_shardings=self._whole)
        self._programs: dict[int, Program] = {}

    def train(
        self,
        data: Mapping[str, Sequence[Encoded]],
        folder: pathlib.Path,
        *,
        start: Mapping[str, Adapter] | None = None,
        load_seconds: float = 0.0,
    ) -> dict[str, Adapter]:
        """Trains one adapter for each entry of `data`, all in one program.

        An adapter with fewer rows ends earlier: its group leaves the batch. Which adapters train
        beside it changes nothing in its result but rounding.

        Args:
          data: {adapter name: its encoded rows}.
          folder: of this training alone: receives the step log `steps.jsonl`, and checkpoints. If
            it holds the checkpoints of a killed run, the training goes on from the newest.
          start: adapters to go on from, of the same rank and scale, instead of fresh ones.
          load_seconds: what was spent on loading before, for the log.

        Returns:
          {adapter name: Adapter}.

        Raises:
          FloatingPointError: if a loss is not finite.
          InputError: if an adapter to go on from has another rank or scale.
        """
        names, settings, base = sorted(data), self._settings, self._base
        state = self._fresh(names, start)
        advance = self._advance(names, state)
        folder.mkdir(parents=True, exist_ok=True)
        with StepLog(folder / STEPS, writes=jax.process_index() == 0) as log:
            state = run_steps(
                f"train {', '.join(names)}",
                state,
                adapter_steps(data, settings),
                max(steps_of(data, settings).values()),
                advance,
                log=log,
                checkpoints=Checkpoints(folder / CHECKPOINTS, settings.checkpoint_steps),
                load_seconds=load_seconds,
            )
        by_layer = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), state.lora)
        return unstack(by_layer, names=names, scale=settings.scale, base=base.name)

    def time_alone(
        self, data: Mapping[str, Sequence[Encoded]], rounds: int = 5, timed: int = 4
    ) -> dict[str, dict[str, Any]]:
        """Times warm steps of training each adapter on its own, and scales them by their number.

        Args:
          data: {adapter name: its encoded rows}.
          rounds: the adapters take turns, so that a machine that is slower for a while is so for
            all; the median over rounds counts.
          timed: steps of each length in a round.

        Returns:
          {adapter name: {seconds: of the whole training, as scaled; steps: {length: number};
          seconds_a_step: {length: median}}}.
        """
        steps: dict[str, dict[int, list[Step]]] = {name: {} for name in data}
        for name, rows in data.items():
            for step in adapter_steps({name: rows}, self._settings):
                steps[name].setdefault(step.length, []).append(step)
        states = {name: self._fresh([name], None) for name in data}
        advances = {name: self._advance([name], states[name]) for name in data}
        seconds: dict[tuple[str, int], list[float]] = {}
        for turn in range(rounds + 1):
            for name, by_length in steps.items():
                for length, some in by_length.items():
                    start = time.monotonic()
                    for number in range(timed):
                        step = some[number % len(some)]
                        states[name], loss, _ = advances[name](states[name], step)
                        loss.block_until_ready()
                    if turn:  # The first is to warm up.
                        spent = (time.monotonic() - start) / timed
                        seconds.setdefault((name, length), []).append(spent)
        found = {}
        for name, by_length in steps.items():
            counts = {length: len(some) for length, some in by_length.items()}
            medians = {length: statistics.median(seconds[name, length]) for length in counts}
            found[name] = {
                "seconds": sum(counts[length] * medians[length] for length in counts),
                "steps": counts,
                "seconds_a_step": medians,
            }
        return found

    def _fresh(self, names: Sequence[str], start: Mapping[str, Adapter] | None) -> TrainState:
        settings, base = self._settings, self._base
        spec = settings.lora(len(names))
        if start:
            _check_same_shape(start, settings)
            lora = stack({n: start[n] for n in names}, base.config, spec, base.dtype, scaled=False)
            lora = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), lora)
        else:
            lora = init_lora(base.config, spec, [adapter_seed(n, settings.seed) for n in names])
        return jax.device_put(TrainState(lora, jax.vmap(self._tx.init)(lora)), self._whole)

    def _advance(self, names: Sequence[str], state: TrainState) -> Callable:
        """Returns (state, step) -> (state, loss [g], seconds spent on compiling)."""
        settings, base, rules = self._settings, self._base, Rules()
        program = self._program(len(names), state)
        scale = self._put(np.full(len(names), settings.scale))
        seeds = np.array([adapter_seed(name, settings.seed) for name in names], np.uint32)

        def advance(state: TrainState, step: Step) -> tuple[TrainState, jax.Array, float]:
            live = [names.index(name) for name in step.names]
            rates = np.zeros(len(names))
            rates[live] = step.rates
            keys = None
            if settings.dropout:
                keys = self._keys(seeds[live], step.number)
            (state, loss), compiling = program(
                (step.arrays["tokens"].shape, step.arrays["target"].shape),
                state,
                base.params,
                place(step.arrays, base.mesh, rules),
                Active(self._put(live, np.int32), scale, keys),
                self._put(rates),
            )
            return state, loss, compiling

        return advance

    def _put(self, values, dtype=np.float32) -> jax.Array:
        return jax.device_put(np.asarray(values, dtype), self._whole)

    def _program(self, n: int, state: TrainState) -> "Program":
        if n not in self._programs:
            settings = self._settings
            base = self._base
            graph, _ = split_lora(
                base.config,
                settings.lora(n),
                base.dtype,
                remat=settings.remat,
                attention=base.attention,
            )
            placed = jax.tree.map(lambda _: self._whole, state)
            self._programs[n] = Program(
                make_step(graph, self._tx), donate=(0,), out_shardings=(placed, self._whole)
            )
        return self._programs[n]


def _dropout_keys(seeds: jax.Array, step: int) -> jax.Array:
    """Random keys [g] of adapters with these seeds: what is dropped is the adapter's own affair."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), step))(seeds)


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


def steps_of(data: Mapping[str, Sequence[Encoded]], settings: TrainSettings) -> dict[str, int]:
    """Returns how many steps each adapter is trained, in the order of the names."""
    return {
        name: steps_per_epoch(len(data[name]), settings.batch_size) * settings.of(name).epochs
        for name in sorted(data)
    }


def adapter_steps(data: Mapping[str, Sequence[Encoded]], settings: TrainSettings) -> Iterator[Step]:
    """Yields the steps that train one adapter for each entry of `data` side by side."""
    rows, whole = settings.batch_size, settings.loss == "all"
    answers = max(len(e.answer) for d in data.values() for e in d)
    total, of = steps_of(data, settings), {name: settings.of(name) for name in data}
    streams = {
        n: training_batches(data[n], rows=rows, epochs=of[n].epochs, seed=settings.seed, name=n)
        for n in total
    }
    for number in range(max(total.values())):
        live = [n for n in total if number < total[n]]
        groups = [next(streams[n]) for n in live]
        length = bucket(max(len(e) for group in groups for e in group), settings.buckets)
        yield Step(
            number,
            live,
            [
                learning_rate(number, total[n], peak=of[n].learning_rate, warmup=of[n].warmup)
                for n in live
            ],
            length,
            pad(groups, length, length if whole else answers, rows, whole=whole),
            {n: sum(map(len, group)) for n, group in zip(live, groups, strict=True)},
            {n: [e.id for e in group] for n, group in zip(live, groups, strict=True)},
        )
