"""A linear layer that carries the low-rank factors of n adapters."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx


class BaseParam(nnx.Param):
    """A weight of the base model, frozen while adapters train."""

    axes: tuple[str | None, ...]


class LoraParam(nnx.Param):
    """A factor of n adapters."""

    axes: tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """How many adapters a model holds and of what shape.

    Attributes:
      n: adapters held at once.
      rank: rank r of all of them (a lower one is padded with zeros).
      targets: projections that carry an adapter, such as `q_proj`.
    """

    n: int
    rank: int
    targets: tuple[str, ...]


class LoraLinear(nnx.Module):
    """y = x W + scale * (x A) B, with A and B of the adapter that each group names.

    The kernels are stacked over layers: inside the model's scan the leading axis `l` is gone.
    A and B lie transposed to PEFT's (`[i, r]` and `[r, o]`), so that both products are plain
    matrix products over contiguous rows. They start as zeros: `models.stacking` draws fresh
    adapters or fills in stored ones.

    Args:
      layers: l, how many layers are stacked.
      shape: (i, o).
      axes: logical names of (i, o), for sharding.
      lora: the adapters, or None.
      dtype: of the base kernel and of the computation. LoRA factors are float32.
    """

    def __init__(
        self,
        layers: int,
        shape: tuple[int, int],
        axes: tuple[str, str],
        lora: LoraSpec | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        i, o = shape
        self.kernel = BaseParam(
            (jax.random.normal(rngs.params(), (layers, i, o)) * 0.02).astype(dtype),
            axes=("layers", *axes),
        )
        if lora:
            self.lora_a = LoraParam(
                jnp.zeros((layers, lora.n, i, lora.rank)),
                axes=("layers", "adapters", axes[0], None),
            )
            self.lora_b = LoraParam(
                jnp.zeros((layers, lora.n, lora.rank, o)),
                axes=("layers", "adapters", None, axes[1]),
            )

    def __call__(self, x: jax.Array, lora_scale: jax.Array, adapter_id: jax.Array) -> jax.Array:
        """Args: x [g, b, s, i]; lora_scale [n]; adapter_id [g]. Returns [g, b, s, o]."""
        y = jnp.einsum("gbsi,io->gbso", x, self.kernel[...])
        if hasattr(self, "lora_a"):
            a = self.lora_a[...][adapter_id].astype(x.dtype)  # [g, i, r]
            b = self.lora_b[...][adapter_id] * lora_scale[adapter_id][:, None, None]  # [g, r, o]
            low = jnp.einsum("gbsi,gir->gbsr", x, a)
            y += jnp.einsum("gbsr,gro->gbso", low, b.astype(x.dtype))
        return y
