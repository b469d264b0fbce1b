"""Training's own step, timed: lengths of the paper and beyond, five languages in one program."""

import math
from typing import Any

import jax
import numpy as np

from benchmarks import measuring
from benchmarks.gpu_journal import OutOfMemory
from benchmarks.gpu_shape import DTYPE, LANGUAGES, ROWS, Limits, Shape
from benchmarks.measuring import Section
from langmerge_jax.adapters import Adapter
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.stacking import swap_leading, unstack
from langmerge_jax.training.batches import adapter_steps
from langmerge_jax.training.flops import peak_flops, recomputed_flops, step_flops
from langmerge_jax.training.loop import Trainer
from langmerge_jax.training.settings import TrainSettings

_ROUNDS = 3
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

    def first(self) -> tuple[float, np.ndarray]:
        """Takes the first step; returns seconds spent on compiling, and the adapters' losses."""
        try:
            return self._take()
        except InputError as error:  # What compiles a step refuses what does not fit.
            raise OutOfMemory(str(error)) from error

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
    section: Section, shape: Shape, setup: Setup, limits: Limits, length: int, bar: str
) -> None:
    """One adapter, eight rows of one length a step.

    Args:
        bar: Its name in `shape.bars`, for tokens a second.
    """
    base, settings = setup.base, setup.settings
    training = Training(setup, LANGUAGES[:1], length)
    compiling, _ = training.first()
    section.note("compiling", compiling, "s")
    count = _steps_a_round(training, shape)
    rounds = [measuring.timed(lambda: training.take(count)) / count for _ in range(_ROUNDS)]
    seconds = section.median("a step", rounds)

    step = training.steps[0]
    spec, targets = settings.lora(1), int(np.count_nonzero(step.arrays["weight"]))
    flops = step_flops(base.config, spec, lengths=step.lengths, targets=targets).total
    again = recomputed_flops(base.config, spec, lengths=step.lengths, remat=settings.remat)
    share = limits.of_matmul(flops / seconds)
    least = shape.bars.get(bar)
    section.note("tokens", training.tokens / seconds, "tok/s", least=least, share=share)
    section.note("model FLOP/s", flops / seconds / 1e12, "TFLOP/s", share=share)
    if again:
        rate = (flops + again) / seconds
        section.note("with recomputed", rate / 1e12, "TFLOP/s", share=limits.of_matmul(rate))
    if peak := peak_flops(base.mesh.devices.flat[0].device_kind, DTYPE):
        section.note("MFU by datasheet", 100 * flops / seconds / peak, "%")
    division, sizes = setup.trainer.compiled_step(step)
    # As `plan` counts it.
    planned = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    planned += sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    section.note("compiled memory", planned / 1e9, "GB")
    section.settings |= {
        "rows": ROWS,
        "length": length,
        "remat": settings.remat,
        "parts": math.prod(division),
        "tokens_a_step": training.tokens,
        "model_flops_a_step": flops,
        "recomputed_flops_a_step": again,
        "steps_a_round": count,
    }


def together(section: Section, shape: Shape, setup: Setup) -> Training:
    """Five adapters in one program, beside each by itself in turn; returns the former."""
    five = Training(setup, LANGUAGES, shape.short)
    each = [Training(setup, (name,), shape.short) for name in LANGUAGES]
    compiling, losses = five.first()
    section.note("compiling", compiling, "s")
    first = np.concatenate([training.first()[1] for training in each])
    section.note("first losses apart", np.abs(first / losses - 1).max(), most=2.0**-7)
    count = _steps_a_round(five, shape)
    section.settings |= {
        "rows": ROWS,
        "length": shape.short,
        "adapters": len(LANGUAGES),
        "tokens_a_step": five.tokens,
        "steps_a_round": count,
    }
    rounds = measuring.interleaved(
        {
            "in one": lambda: five.take(count),
            "one by one": lambda: [training.take(count) for training in each],
        },
        _ROUNDS,
    )
    found = {
        who: section.median(f"{who}, a step", [x / count for x in seconds])
        for who, seconds in rounds.items()
    }
    for who, seconds in found.items():
        section.note(f"{who}, tokens", five.tokens / seconds, "tok/s")
    least = shape.bars.get("together")
    section.note("times faster", found["one by one"] / found["in one"], "x", least=least)
    return five


def _steps_a_round(training: Training, shape: Shape) -> int:
    """How many warm steps take about a round's seconds."""
    return max(1, round(shape.round_seconds / measuring.timed(lambda: training.take(1))))
