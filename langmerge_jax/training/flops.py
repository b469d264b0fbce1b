"""What a LoRA training needs in floating-point operations, and what devices could do at best."""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp

from langmerge_jax.models.config import LlamaConfig
from langmerge_jax.models.lora import LoraSpec

# Dense FLOP/s in bfloat16 of one jax device, by its `device_kind`. From the vendors' datasheets,
# half of what they quote "with sparsity". Of TPU v2, v3 and 7x a device is half a chip.
_PEAKS = {
    "NVIDIA A10": 125e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
}

# The projections of a layer; those of a line read what the line before has made.
_BLOCKS = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)


def peak_flops(device_kind: str, dtype: jnp.dtype) -> float | None:
    """Returns the dense FLOP/s that a device could do, None if it is not known.

    Args:
      device_kind: jax's name of the device.
      dtype: of the computation; peaks are known for 16 bits.
    """
    return _PEAKS.get(device_kind) if jnp.dtype(dtype).itemsize == 2 else None


@dataclasses.dataclass(frozen=True)
class Flops:
    """Model FLOPs by what they are spent on; a multiplication and an addition are two.

    Attributes:
      weights: products with the frozen weights of the layers.
      attention: scores, and values summed by them.
      lora: products with the adapters' factors.
      head: logits.
    """

    weights: int
    attention: int
    lora: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.attention + self.lora + self.head


def step_flops(
    config: LlamaConfig, spec: LoraSpec, *, lengths: Sequence[int], targets: int
) -> Flops:
    """Counts what one training step needs, whatever the program does beyond that.

    Forward, every token passes the weights and factors of all layers and attends to itself and
    those before it; what predicts a target passes the head. Backward, activations get a gradient
    through each of these products, and factors one of their own; frozen weights get none. Where
    nothing trained lies below, no gradient is needed: in the first layer what q, k and v read, and
    all else below the lowest adapted projection.

    Not counted: padding, the masked half of the scores, what is rematerialised, the optimizer, and
    elementwise operations, embedding lookups among them.

    Args:
      config: of the model.
      spec: of the adapters.
      lengths: of the sequences, each of which attends to itself alone; padding not counted.
      targets: tokens that are predicted.

    References: PaLM (arXiv 2204.02311), appendix B, for the utilization that is defined by it.
    """
    tokens, pairs = sum(lengths), sum(length * (length + 1) // 2 for length in lengths)
    first, other = (_layer(config, spec, below=below) for below in (False, True))
    count = config.num_hidden_layers - 1
    weights, attention, lora = (x + count * y for x, y in zip(first, other, strict=True))
    return Flops(
        weights=tokens * weights,
        attention=pairs * attention,
        lora=tokens * lora,
        head=targets * 4 * config.hidden_size * config.vocab_size,
    )


def recomputed_flops(
    config: LlamaConfig, spec: LoraSpec, *, lengths: Sequence[int], targets: int, remat: str
) -> int:
    """Counts what the backward pass of a step computes again.

    Logits, and the forward pass of the layers: with `layer` all of it, with `products` all but the
    products with frozen weights. What a kernel of attention computes again by itself is not
    counted.

    Args:
      config, spec, lengths: see `step_flops`.
      targets: tokens whose logits are computed again; see `step.in_pieces`.
      remat: one of `llama.REMAT`.
    """
    head = targets * 2 * config.hidden_size * config.vocab_size
    if remat == "none":
        return head
    tokens, pairs = sum(lengths), sum(length * (length + 1) // 2 for length in lengths)
    shapes = config.projections()
    weights = sum(2 * i * o for i, o in shapes.values()) if remat == "layer" else 0
    lora = sum(2 * sum(shapes[name]) * spec.rank for name in spec.targets)
    attention = 2 * 2 * config.num_attention_heads * config.head_dim
    return head + config.num_hidden_layers * (tokens * (weights + lora) + pairs * attention)


@functools.cache
def _layer(config: LlamaConfig, spec: LoraSpec, *, below: bool) -> tuple[int, int, int]:
    """Counts of one layer: weights and factors a token, attention a pair of positions.

    Args:
      below: whether something trained lies below the layer.

    Returns:
      (weights, attention, lora).
    """
    weights = attention = lora = 0
    for block in _BLOCKS:
        trained = [name in spec.targets for name in block]
        for name, has_factors in zip(block, trained, strict=True):
            i, o = config.projections()[name]
            weights += (4 if below else 2) * i * o
            if has_factors:
                # Forward, their own gradient, and the gradients of x A and of x, if x has one.
                lora += (4 * (i + o) + 2 * o + (2 * i if below else 0)) * spec.rank
        if block == _BLOCKS[0]:
            q, k, v = (below or has_factors for has_factors in trained)
            # Scores and sums; gradients of the values, the scores, the queries and the keys.
            products = 2 + v + (q or k) + q + k
            attention = products * 2 * config.num_attention_heads * config.head_dim
        below = below or any(trained)
    return weights, attention, lora
