"""An adapter in memory: the LoRA factors of every module, and the checks that make it one."""

import dataclasses
import math
import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from langmerge_jax.errors import InputError

FLOAT_DTYPES = tuple(np.dtype(t) for t in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64))


def natural_order(path: str) -> tuple[str | int, ...]:
    """Sort key for module paths that puts `layers.2` before `layers.10`."""
    pieces = re.split(r"([0-9]+)", path)
    return tuple(int(piece) if i % 2 else piece for i, piece in enumerate(pieces))


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """LoRA factors of one linear layer; its weight `[out, in]` changes by `scale * b @ a`.

    Attributes:
        a: `[rank, in]`, bfloat16, float16, float32 or float64.
        b: `[out, rank]`, of one of the same dtypes.
        scale: `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.

    Raises:
        InputError: If a factor is no matrix of floats, the ranks disagree, a dimension is empty
            or a value is not finite.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            value = np.asarray(getattr(self, name))
            object.__setattr__(self, name, value)
            label = f"lora_{name.upper()}"
            if value.dtype not in FLOAT_DTYPES:
                names = ", ".join(t.name for t in FLOAT_DTYPES)
                raise InputError(f"{label} has dtype {value.dtype}; an adapter holds {names}")
            if value.ndim != 2 or 0 in value.shape:
                raise InputError(
                    f"{label} has shape {value.shape}; only LoRA of linear layers is handled, "
                    "a non-empty matrix"
                )
            if not np.isfinite(value).all():
                raise InputError(
                    f"{label} holds NaN or infinity; the run that made the adapter diverged"
                )
        if self.a.shape[0] != self.b.shape[1]:
            raise InputError(
                f"lora_A {self.a.shape} has rank {self.a.shape[0]}, "
                f"lora_B {self.b.shape} has rank {self.b.shape[1]}; they must agree"
            )
        if not math.isfinite(self.scale):
            raise InputError(f"scale is {self.scale}; it must be a finite number")
        object.__setattr__(self, "scale", float(self.scale))

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def in_features(self) -> int:
        return self.a.shape[1]

    @property
    def out_features(self) -> int:
        return self.b.shape[0]

    def delta(self, dtype: np.typing.DTypeLike = np.float32) -> np.ndarray:
        """The task vector `scale * b @ a`, `[out, in]`, computed and returned in `dtype`."""
        dtype = np.dtype(dtype)
        return (self.b.astype(dtype) * dtype.type(self.scale)) @ self.a.astype(dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """One training run's LoRA factors, or what a merge made of several.

    Attributes:
        modules: Factors by module path as the base model names it
            (`model.layers.0.self_attn.q_proj`), kept in natural order.
        base: Name or path of the base model; None where it is not known.
        revision: Version of the base model; None is its default one.
        task_type: PEFT's task name, such as `CAUSAL_LM`.

    Raises:
        InputError: If there is no module.
    """

    modules: dict[str, Factors]
    base: str | None = None
    revision: str | None = None
    task_type: str | None = None

    def __post_init__(self) -> None:
        if not self.modules:
            raise InputError("the adapter has no modules; it needs one pair of factors at least")
        ordered = {path: self.modules[path] for path in sorted(self.modules, key=natural_order)}
        object.__setattr__(self, "modules", ordered)


def check_same_base(adapters: Mapping[str, Adapter], *, check_base_name: bool = True) -> None:
    """Checks that adapters belong to one base model, so that their deltas can be added.

    Args:
        adapters: Adapters by the name to use in messages.
        check_base_name: Whether the base models' names must agree too. One base may be addressed
            by two paths; False compares modules and shapes only. An adapter that names no base
            agrees with every name.

    Raises:
        InputError: If base names, module sets or module shapes differ.
    """
    if not adapters:
        return
    first, *others = sorted(adapters)
    named = {name: adapters[name].base for name in sorted(adapters) if adapters[name].base}
    if check_base_name and named:
        anchor = next(iter(named))
        for name, base in named.items():
            if base != named[anchor]:
                raise InputError(
                    f"adapter {name!r}: base model is {base!r}, {anchor!r} has {named[anchor]!r}; "
                    "adapters of different base models cannot be merged "
                    "(if both names mean one model, pass check_base_name=False)"
                )
    reference = adapters[first].modules
    for name in others:
        modules = adapters[name].modules
        for path in sorted(reference.keys() ^ modules.keys(), key=natural_order):
            without, having = (name, first) if path in reference else (first, name)
            raise InputError(
                f"adapter {without!r}: {path} is missing, {having!r} has it; "
                "adapters must cover the same modules to be merged"
            )
        for path, factors in modules.items():
            for axis in ("in", "out"):
                got = getattr(factors, f"{axis}_features")
                expected = getattr(reference[path], f"{axis}_features")
                if got != expected:
                    raise InputError(
                        f"adapter {name!r}: {path} has {axis}={got}, {first!r} has {expected}; "
                        "adapters of different base models cannot be merged"
                    )
