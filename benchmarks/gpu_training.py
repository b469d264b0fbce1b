"""Training's own step, timed: lengths of the paper and beyond, five languages in one program."""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from benchmarks import measuring
from benchmarks.gpu_correct import apart
from benchmarks.gpu_journal import OutOfMemory
from benchmarks.gpu_shape import DTYPE, LANGUAGES, ROWS, Limits, Shape
from benchmarks.measuring import Section
from langmerge_jax.adapters import Adapter
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.stacking import swap_leading, unstack
from langmerge_jax.parallel.memory import peak_beside
from langmerge_jax.training.batches import adapter_steps
from langmerge_jax.training.flops import peak_flops, recomputed_flops, step_flops
from langmerge_jax.training.loop import Trainer
from langmerge_jax.training.settings import TrainSettings
from langmerge_jax.training.step import in_pieces

# Of gradients that have gone through all layers in bfloat16. On a CPU, with 32 layers 256 wide, two
# ways to take a step were 1 % apart.
_ROUNDING = 2.0**-5
# Batches that a training goes through again and again.
_BATCHES = 4


def settings_of(shape: Shape, *, remat: str = "none", accumulation: int = 0) -> TrainSettings:
    """The paper's settings, with a loss on every token."""
    return TrainSettings(
        rank=shape.rank,
        alpha=float(shape.rank),
        rslora=False,
        dropout=0.0,
        targets=tuple(shape.config.projections()),
        epochs=1,
        batch_size=ROWS,
        learning_rate=2e-5,
        warmup=0.03,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        buckets=(shape.short, shape.middle, shape.long),
        packing=False,
        loss="all",
        remat=remat,
        accumulation=accumulation,
        keep="last",
        checkpoint_steps=200,
        seed=0,
    )


class Setup:
    """A way to train over a base, whose programs are compiled once.

    Args:
        shape: Of the run.
        base: Over which is trained.
        **different: As of `settings_of`.
    """

    def __init__(self, shape: Shape, base: Base, **different: Any):
        self.base, self.settings = base, settings_of(shape, **different)
        self.trainer = Trainer(base, self.settings)


class Training:
    """A training that goes on from one call to the next, over random full rows.

    Args:
        setup: How it is done.
        names: Of the adapters.
        length: Tokens a row.

    Attributes:
        names: Likewise.
        steps: That it goes through again and again.
        tokens: Of each of them.
    """

    def __init__(self, setup: Setup, names: tuple[str, ...], length: int):
        data = {name: _rows(setup.base, length, LANGUAGES.index(name)) for name in names}
        self.names = names
        self.steps = list(adapter_steps(data, setup.settings, setup.base.mesh))
        self.tokens = sum(self.steps[0].tokens.values())
        self._state, self._advance = setup.trainer.begin(names)
        self._setup, self._taken = setup, 0

    def first(self) -> tuple[float, float, np.ndarray]:
        """Takes the first step; returns seconds of compiling and of the rest, and losses."""
        start = time.perf_counter()
        try:
            compiling, losses = self._take()
        except InputError as error:  # What compiles a step refuses what does not fit.
            raise OutOfMemory(str(error)) from error
        return compiling, time.perf_counter() - start - compiling, losses

    def gradient(self) -> np.ndarray:
        """Returns the first adapter's gradient after one step, but for a factor.

        It is Adam's first moment of the factors B: that of A has nothing in it, B being 0.
        """
        moments = nnx.to_flat_state(optax.tree.get(self._state.optimizer, "mu"))
        found = [np.asarray(leaf[...]) for path, leaf in moments if path[-1] == "lora_b"]
        return np.concatenate([x[0].ravel() for x in found])

    def take(self, count: int) -> None:
        """Takes steps, and waits for the last."""
        for number in range(count):
            compiling, loss = self._take(read=number + 1 == count)
            if compiling:
                raise AssertionError("a step that was to be timed has been compiled")
            if loss is not None and not np.isfinite(loss).all():
                raise FloatingPointError(f"losses {loss} after {self._taken} steps")

    def _take(self, read: bool = True) -> tuple[float, np.ndarray | None]:
        step = self.steps[self._taken % len(self.steps)]
        self._state, loss, compiling = self._advance(self._state, step)
        self._taken += 1
        return compiling, np.asarray(loss) if read else None

    def adapters(self) -> dict[str, Adapter]:
        """The adapters as they are, on the host."""
        by_layer, setup = jax.jit(swap_leading)(self._state.lora), self._setup
        return unstack(by_layer, names=self.names, scale=setup.settings.scale, base=setup.base.name)


def _rows(base: Base, length: int, seed: int) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, base.config.vocab_size, (_BATCHES * ROWS, length)).tolist()
    return [Encoded(tuple(ids[:-1]), tuple(ids[-1:])) for ids in rows]


def alone(
    section: Section,
    shape: Shape,
    setup: Setup,
    limits: Limits,
    length: int,
    bar: str,
    expected: np.ndarray | None,
) -> np.ndarray:
    """One adapter, eight rows of one length a step.

    Args:
        bar: Its name in `shape.bars`, for tokens a second.
        expected: The gradient of the first step, where it was taken in another way before.

    Returns:
        That gradient.
    """
    base, settings = setup.base, setup.settings
    training = Training(setup, LANGUAGES[:1], length)
    compiling, first, _ = training.first()
    section.note("compiling", compiling, "s")
    gradient = training.gradient()
    if expected is not None:
        section.note("gradient apart", apart(gradient, expected), most=_ROUNDING)
    count, rounds = _pace(training, shape, first)
    take = functools.partial(training.take, count)
    (seconds,) = _measure(section, setup, training, {"a step": take}, count, rounds)

    step = training.steps[0]
    division, _ = setup.trainer.compiled_step(step)
    spec, targets = settings.lora(1), int(np.count_nonzero(step.arrays["weight"]))
    flops = step_flops(base.config, spec, lengths=step.lengths, targets=targets).total
    again = recomputed_flops(
        base.config,
        spec,
        lengths=step.lengths,
        targets=targets if in_pieces(step.shape, division, base.config.vocab_size) else 0,
        remat=settings.remat,
    )
    share = limits.of_matmul(flops / seconds)
    least = shape.bars.get(bar)
    section.note("tokens", training.tokens / seconds, "tok/s", least=least, share=share)
    section.note("model FLOP/s", flops / seconds / 1e12, "TFLOP/s", share=share)
    if again:
        rate = (flops + again) / seconds
        section.note("with recomputed", rate / 1e12, "TFLOP/s", share=limits.of_matmul(rate))
    if peak := peak_flops(base.mesh.devices.flat[0].device_kind, DTYPE):
        section.note("MFU by datasheet", 100 * flops / seconds / peak, "%")
    section.settings |= {
        "remat": settings.remat,
        "model_flops_a_step": flops,
        "recomputed_flops_a_step": again,
    }
    return gradient


def together(section: Section, shape: Shape, setup: Setup) -> Training:
    """Five adapters in one program, beside each by itself in turn; returns the former."""
    five = Training(setup, LANGUAGES, shape.short)
    each = [Training(setup, (name,), shape.short) for name in LANGUAGES]
    compiling, first, losses = five.first()
    section.note("compiling", compiling, "s")
    alone = np.concatenate([training.first()[2] for training in each])
    section.note("losses apart", np.abs(alone / losses - 1).max(), most=2.0**-7)
    error = apart(five.gradient(), each[0].gradient())
    section.note("gradient apart", error, most=_ROUNDING)
    count, rounds = _pace(five, shape, first)
    contestants = {
        "in one, a step": functools.partial(five.take, count),
        "one by one, a step": lambda: [training.take(count) for training in each],
    }
    in_one, one_by_one = _measure(section, setup, five, contestants, count, rounds)
    section.note("in one, tokens", five.tokens / in_one, "tok/s")
    section.note("one by one, tokens", five.tokens / one_by_one, "tok/s")
    # What is cut into parts is not in one.
    least = shape.bars.get("together") if section.settings["parts"] == 1 else None
    section.note("times faster", one_by_one / in_one, "x", least=least)
    section.settings["adapters"] = len(LANGUAGES)
    return five


def _pace(training: Training, shape: Shape, first: float) -> tuple[int, int]:
    """Returns how many steps a round has, and how many rounds there are.

    Args:
        first: Seconds of the first step.
    """
    # A step that is long even without what the device does on a first one.
    if first > 2 * shape.round_seconds:
        return 1, 2
    seconds = measuring.timed(lambda: training.take(1))
    return max(1, round(shape.round_seconds / seconds)), 3


def _measure(
    section: Section,
    setup: Setup,
    training: Training,
    contestants: Mapping[str, Callable[[], Any]],
    count: int,
    rounds: int,
) -> list[float]:
    """Notes and returns the seconds of a step, in rounds of so many, and notes their memory."""
    taken: dict[str, list[float]] = {}
    beside = peak_beside(
        setup.base.mesh, lambda: taken.update(measuring.interleaved(contestants, rounds))
    )
    found = [section.median(name, [x / count for x in each]) for name, each in taken.items()]
    step = training.steps[0]
    division, sizes = setup.trainer.compiled_step(step)
    arguments = sizes.argument_size_in_bytes
    # As `plan` counts it.
    planned = sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    section.note("compiled memory", (arguments + planned) / 1e9, "GB")
    if beside is not None:
        section.note("measured memory", (arguments + beside) / 1e9, "GB")
    section.settings |= {
        "rows": ROWS,
        "length": step.length,
        "parts": math.prod(division),
        "tokens_a_step": training.tokens,
        "steps_a_round": count,
    }
    return found
