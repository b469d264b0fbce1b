"""How adapters are trained."""

import dataclasses
import math
import sys
import zlib
from collections.abc import Mapping
from typing import Any

from langmerge_jax.errors import InputError
from langmerge_jax.models.llama import REMAT
from langmerge_jax.models.lora import LoraSpec

LOSSES = ("answers", "all")
KEEP = ("last", "best")
MOST_BUCKETS = 4

# Longer rows are padded to whole tiles of the hardware.
_FREE_LENGTH, _LENGTH_STEP = 512, 128

# Settings that an adapter may have of its own.
OWN = ("epochs", "learning_rate", "warmup")

# The least and the most that each may be.
_LIMITS = {
    **dict.fromkeys(("epochs", "batch_size", "checkpoint_steps"), (1, math.inf)),
    **dict.fromkeys(("learning_rate", "weight_decay", "accumulation"), (0, math.inf)),
    **dict.fromkeys(("b1", "b2"), (0, math.nextafter(1, 0))),
    **dict.fromkeys(("eps", "max_grad_norm"), (sys.float_info.min, math.inf)),
    "warmup": (0, 1),
}
_WHOLE = ("epochs", "batch_size", "checkpoint_steps", "accumulation")


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
      buckets: sequence lengths a batch is padded to, four at most. Beyond 512 they are rounded up
        to multiples of 128.
      packing: lay several examples of a batch out in one row of the longest bucket, with segments
        that keep them apart. The batches stay what they are, only their layout changes; what
        dropout drops hangs on the row.
      loss: on the tokens of the `answers`, or on `all`, the prompts' too.
      remat: what is computed again in the backward pass, one of `llama.REMAT`.
      accumulation: parts that the batch of a step is cut into, some adapters or rows each, whose
        gradients are added up: at least so many, if it can be cut into so many. 0: as few as fit
        the memory.
      keep: the `last` factors, or those of the epoch whose loss on validation is `best`.
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
    packing: bool
    loss: str
    remat: str
    accumulation: int
    keep: str
    checkpoint_steps: int
    seed: int
    own: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, known in (("loss", LOSSES), ("remat", REMAT), ("keep", KEEP)):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"train.{name}={value!r}: choose among {', '.join(known)}")
        if self.rank < 1:
            raise InputError(f"lora.rank={self.rank}: must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InputError(f"lora.dropout={self.dropout}: must be at least 0 and below 1")
        _check_limits("train.", {name: getattr(self, name) for name in _LIMITS})
        if not 1 <= len(self.buckets) <= MOST_BUCKETS or min(self.buckets) < 1:
            raise InputError(
                f"train.buckets={self.buckets}: give one to {MOST_BUCKETS} lengths; each one is "
                "compiled"
            )
        for name, settings in self.own.items():
            if unknown := set(settings) - set(OWN):
                raise InputError(
                    f"train.own.{name}.{min(unknown)}: an adapter may have {', '.join(OWN)} of its "
                    "own"
                )
            _check_limits(f"train.own.{name}.", settings)

    def of(self, name: str) -> "TrainSettings":
        """Returns the settings of one adapter."""
        return dataclasses.replace(self, **self.own.get(name, {}), own={})

    @property
    def lengths(self) -> tuple[int, ...]:
        """The buckets, ascending, as rows are padded to them."""
        rounded = {x if x <= _FREE_LENGTH else x + -x % _LENGTH_STEP for x in self.buckets}
        return tuple(sorted(rounded))

    @property
    def scale(self) -> float:
        """What a delta is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def lora(self, n: int) -> LoraSpec:
        """Returns the shape of n adapters."""
        return LoraSpec(n, self.rank, self.targets, self.dropout)


def _check_limits(prefix: str, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        least, most = _LIMITS[name]
        if not isinstance(value, int if name in _WHOLE else (int, float)):
            kind = "a whole number" if name in _WHOLE else "a number"
            raise InputError(f"{prefix}{name}={value!r}: must be {kind}")
        if not least <= value <= most:
            limits = f"at least {least}" if most == math.inf else f"between {least} and {most}"
            raise InputError(f"{prefix}{name}={value}: must be {limits}")


def adapter_seed(name: str, seed: int) -> int:
    """Returns the seed of one adapter's initial factors, whatever is trained beside it."""
    return zlib.crc32(f"{seed}/{name}".encode())
