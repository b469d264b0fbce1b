"""What a Llama or one of its kin is, read from the `config.json` of a Hugging Face directory."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from langmerge_jax.errors import InputError

_ROPE_TYPES = ("default", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency scaling.

    Wavelengths shorter than `original_max_position / high_freq_factor` stay, those longer than
    `original_max_position / low_freq_factor` are stretched by `factor`, the band between is
    interpolated.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class _Family:
    """What sets the models of one `model_type` apart from a Llama.

    Attributes:
      architecture: transformers' class for it.
      qkv_bias, o_bias: whether these projections have biases, or None: as `attention_bias` says.
      qk_norm: whether each head's queries and keys are normalised.
    """

    architecture: str
    qkv_bias: bool | None
    o_bias: bool | None
    qk_norm: bool


_FAMILIES = {
    "llama": _Family("LlamaForCausalLM", None, None, False),
    "mistral": _Family("MistralForCausalLM", False, False, False),
    "qwen2": _Family("Qwen2ForCausalLM", True, False, False),
    "qwen3": _Family("Qwen3ForCausalLM", None, None, True),
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shape and constants of one model; field names follow Hugging Face's `config.json`.

    `qkv_bias`, `o_bias` and `mlp_bias` say which linears have a bias, `qk_norm` whether queries and
    keys are normalised a head.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    max_position_embeddings: int
    model_type: str = "llama"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )

    def projections(self) -> dict[str, tuple[int, int]]:
        """Returns {projection name: (in, out)} of one layer's seven linears."""
        d, f = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (d, q),
            "k_proj": (d, kv),
            "v_proj": (d, kv),
            "o_proj": (q, d),
            "gate_proj": (d, f),
            "up_proj": (d, f),
            "down_proj": (f, d),
        }

    def biased(self) -> frozenset[str]:
        """Returns the names of the projections that have a bias."""
        blocks = (
            (self.qkv_bias, ("q_proj", "k_proj", "v_proj")),
            (self.o_bias, ("o_proj",)),
            (self.mlp_bias, ("gate_proj", "up_proj", "down_proj")),
        )
        return frozenset(name for has_bias, names in blocks if has_bias for name in names)

    def to_hf(self) -> dict[str, Any]:
        """Returns the `config.json` that `from_hf` and transformers read back."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_scaling:
            rope |= {
                "rope_type": "llama3",
                "factor": self.rope_scaling.factor,
                "low_freq_factor": self.rope_scaling.low_freq_factor,
                "high_freq_factor": self.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": self.rope_scaling.original_max_position,
            }
        fields = dataclasses.asdict(self)
        for name in ("rope_scaling", "rope_theta", "qkv_bias", "o_bias", "qk_norm"):
            del fields[name]
        return {
            "architectures": [_FAMILIES[self.model_type].architecture],
            "hidden_act": "silu",
            "attention_bias": self.qkv_bias,
            # Mistral and Qwen have one by default in transformers.
            "sliding_window": None,
            "use_sliding_window": False,
            # Older readers know `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`.
            "rope_theta": self.rope_theta,
            "rope_scaling": rope if self.rope_scaling else None,
            "rope_parameters": rope,
            **fields,
        }


def from_hf(fields: dict[str, Any], source: str) -> LlamaConfig:
    """Builds a LlamaConfig from a parsed `config.json`.

    Args:
      fields: the JSON object. RoPE settings are read from `rope_theta`/`rope_scaling` and from
        `rope_parameters`, the name transformers 5 writes.
      source: where it came from, for error messages.

    Raises:
      InputError: for a model type, a RoPE type or an option that is not implemented, and for a
        missing field.
    """
    kind = fields.get("model_type")
    if kind not in _FAMILIES:
        raise InputError(
            f"{source}: model_type={kind!r} is not supported; supported: {', '.join(_FAMILIES)}"
        )
    family = _FAMILIES[kind]
    _check_options(fields, source)
    attention_bias = bool(fields.get("attention_bias"))
    rope = {**(fields.get("rope_scaling") or {}), **(fields.get("rope_parameters") or {})}
    try:
        heads = fields["num_attention_heads"]
        return LlamaConfig(
            vocab_size=fields["vocab_size"],
            hidden_size=fields["hidden_size"],
            intermediate_size=fields["intermediate_size"],
            num_hidden_layers=fields["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=fields.get("num_key_value_heads") or heads,
            head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
            rms_norm_eps=fields["rms_norm_eps"],
            rope_theta=float(rope.get("rope_theta") or fields.get("rope_theta") or 10_000.0),
            rope_scaling=_rope_scaling(rope, fields, source),
            tie_word_embeddings=fields.get("tie_word_embeddings", False),
            max_position_embeddings=fields.get("max_position_embeddings", 2048),
            model_type=kind,
            qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
            o_bias=attention_bias if family.o_bias is None else family.o_bias,
            mlp_bias=bool(fields.get("mlp_bias")) and kind == "llama",
            qk_norm=family.qk_norm,
        )
    except KeyError as error:
        raise InputError(f"{source}: the field {error} is missing") from error


def _check_options(fields: dict[str, Any], source: str) -> None:
    """Refuses what would change the outputs and is not implemented."""
    if fields.get("hidden_act", "silu") != "silu":
        raise InputError(
            f"{source}: hidden_act={fields['hidden_act']!r} is not supported, only 'silu'"
        )
    if fields.get("quantization_config"):
        method = fields["quantization_config"].get("quant_method")
        raise InputError(
            f"{source}: the weights are quantised ({method}); take the model they were made from"
        )
    # Qwen's configs name a window that `use_sliding_window` switches off.
    window = fields.get("sliding_window") if fields.get("use_sliding_window", True) else None
    if window is not None and window < fields.get("max_position_embeddings", 2048):
        raise InputError(
            f"{source}: sliding_window={window} is not supported; for sequences up to {window} "
            f"tokens set sliding_window to null and max_position_embeddings to {window}"
        )
    odd = {x for x in fields.get("layer_types") or () if x != "full_attention"}
    if odd:
        raise InputError(f"{source}: layer_types {sorted(odd)} are not supported")


def _rope_scaling(rope: dict, fields: dict, source: str) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in _ROPE_TYPES:
        raise InputError(
            f"{source}: RoPE type {kind!r} is not supported; supported: {', '.join(_ROPE_TYPES)}"
        )
    if kind == "default":
        return None
    return RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position=int(rope["original_max_position_embeddings"]),
    )


def load_config(directory: pathlib.Path) -> LlamaConfig:
    """Reads `directory/config.json`.

    Raises:
      InputError: if the file is missing, is no JSON object, or describes another architecture.
    """
    return from_hf(*read_fields(directory))


def read_fields(directory: pathlib.Path) -> tuple[dict[str, Any], str]:
    """Returns the JSON object of `directory/config.json`, and where it is, for error messages.

    Raises:
      InputError: if the file is missing or is no JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"{directory}: no config.json; a Hugging Face model directory has one")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path}: no JSON object")
    return fields, str(path)


def inverse_frequencies(config: LlamaConfig) -> list[float]:
    """RoPE's angle per position of each rotated pair, [head_dim / 2], in radians.

    Every operation is rounded to float32, as in transformers, by which the models were trained: a
    relative difference of 1e-7 is an angle of 1e-4 after a thousand positions.

    References: RoFormer (arXiv 2104.09864), section 3.4.2; Llama 3 model card for the scaling.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    powers = np.float64(config.rope_theta) ** exponents.astype(np.float64)
    plain = np.float32(1) / powers.astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return plain.tolist()
    lengths = np.float32(2 * math.pi) / plain  # Of a turn, in positions.
    original = np.float32(scaling.original_max_position)
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    factor = np.float32(scaling.factor)
    # 1 where the original context holds many turns (keep), 0 where it holds few (stretch).
    keep = (original / lengths - low) / (high - low)
    between = (1 - keep) * plain / factor + keep * plain
    stretched = np.where(lengths > original / low, plain / factor, between)
    return np.where(lengths < original / high, plain, stretched).tolist()
