"""An adapter in memory: the LoRA factors of every module, and the checks that make it one."""

import dataclasses
import math
import re

import ml_dtypes
import numpy as np

from langmerge_jax.errors import InputError

# The exponent bits of each dtype that an adapter may hold, as an integer of its width.
_EXPONENTS = {
    np.dtype(ml_dtypes.bfloat16): np.uint16(0x7F80),
    np.dtype(np.float16): np.uint16(0x7C00),
    np.dtype(np.float32): np.uint32(0x7F800000),
    np.dtype(np.float64): np.uint64(0x7FF0000000000000),
}
FLOAT_DTYPES = tuple(_EXPONENTS)

_BLOCK = 2**16  # Values that are looked at together: their bits stay in a core's cache.


def natural_order(path: str) -> tuple[str | int, ...]:
    """Sort key for module paths that puts `layers.2` before `layers.10`."""
    pieces = re.split(r"([0-9]+)", path)
    return tuple(int(piece) if i % 2 else piece for i, piece in enumerate(pieces))


def count_not_finite(array: np.ndarray) -> int:
    """How many values of a float array are NaN or infinite; reads the array once."""
    exponent = _EXPONENTS[array.dtype]
    # A view, also of a transpose.
    bits = array.ravel(order="K").view(exponent.dtype)
    return sum(
        int(np.count_nonzero((bits[start : start + _BLOCK] & exponent) == exponent))
        for start in range(0, len(bits), _BLOCK)
    )


class NotFiniteError(InputError):
    """Numbers that are none."""


def _check_values(label: str, array: np.ndarray) -> None:
    if array.dtype not in _EXPONENTS:
        names = ", ".join(t.name for t in FLOAT_DTYPES)
        raise InputError(f"{label} has dtype {array.dtype}; an adapter holds {names}")
    if found := count_not_finite(array):
        values = f"value{'s' * (found > 1)}"
        raise NotFiniteError(f"{label} holds {found} NaN or infinite {values} of {array.size}")


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """LoRA factors of one layer; they may be views of a mapped file.

    The weight `[out, in]` of a linear layer changes by `scale * b @ a`. The weight of an embedding
    is stored `[in, out]`, with one row a token, and changes by the transpose.

    Attributes:
        a: `[rank, in]`, bfloat16, float16, float32 or float64.
        b: `[out, rank]`, of one of the same dtypes.
        scale: `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
        embedding: Whether the layer is an embedding; `in` is then its number of tokens.

    Raises:
        InputError: If a factor is no matrix of floats, the ranks disagree, a dimension is empty
            or a value is not finite (`NotFiniteError`).
    """

    a: np.ndarray
    b: np.ndarray
    scale: float
    embedding: bool = False

    def __post_init__(self) -> None:
        labels = [f"lora_{'embedding_' * self.embedding}{side}" for side in "AB"]
        for name, label in zip("ab", labels, strict=True):
            value = np.asarray(getattr(self, name))
            object.__setattr__(self, name, value)
            if value.ndim != 2 or 0 in value.shape:
                raise InputError(
                    f"{label} has shape {value.shape}; only LoRA of linear layers and embeddings "
                    "is handled, a non-empty matrix"
                )
            _check_values(label, value)
        if self.a.shape[0] != self.b.shape[1]:
            raise InputError(
                f"{labels[0]} {self.a.shape} has rank {self.a.shape[0]}, "
                f"{labels[1]} {self.b.shape} has rank {self.b.shape[1]}; they must agree"
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
        """The task vector `scale * b @ a`, `[out, in]`, computed and returned in `dtype`.

        For an embedding too: its weight changes by the transpose of this.
        """
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
        heads: Whole tensors of fully trained modules (PEFT's `modules_to_save`) by tensor name,
            such as `score.weight`; kept in natural order.
        fan_in_fan_out: Whether the base stores the weights of adapted layers `[in, out]`, as the
            Conv1D of GPT-2 does; they then change by the transpose.

    Raises:
        InputError: If there is no module, or a head holds no finite floats.
    """

    modules: dict[str, Factors]
    base: str | None = None
    revision: str | None = None
    task_type: str | None = None
    heads: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    fan_in_fan_out: bool = False

    def __post_init__(self) -> None:
        if not self.modules:
            raise InputError("the adapter has no modules; it needs one pair of factors at least")
        heads = {
            name: np.asarray(self.heads[name]) for name in sorted(self.heads, key=natural_order)
        }
        for name, value in heads.items():
            _check_values(name, value)
        object.__setattr__(self, "heads", heads)
        ordered = {path: self.modules[path] for path in sorted(self.modules, key=natural_order)}
        object.__setattr__(self, "modules", ordered)
