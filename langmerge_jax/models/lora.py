"""A linear layer that carries the low-rank factors of n adapters."""

import dataclasses
import zlib
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from langmerge_jax.errors import InputError


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
      dropout: probability that an input of A is dropped, where a call brings random keys.
    """

    n: int
    rank: int
    targets: tuple[str, ...]
    dropout: float = 0.0


def targets_of(names: Sequence[str], projections: Collection[str]) -> tuple[str, ...]:
    """Returns the projections that a config's names stand for, in the model's order.

    Args:
      names: of projections; `all-linear` stands for all.
      projections: of the model.

    Raises:
      InputError: for a name that the model has not, and for none.
    """
    unknown = set(names) - {*projections, "all-linear"}
    if unknown or not names:
        raise InputError(
            f"lora.targets={tuple(names)}: choose among {', '.join(projections)}, or all-linear"
        )
    return tuple(x for x in projections if x in names or "all-linear" in names)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Active:
    """The adapters that a batch uses.

    Attributes:
      ids: int32 [g], the adapter of each group.
      scale: float32 [n], what each adapter's delta is multiplied with.
      keys: random keys [g, b] for dropout, one a row, or None for no dropout.
    """

    ids: jax.Array
    scale: jax.Array
    keys: jax.Array | None = None


def without_adapters(groups: int = 1) -> Active:
    """Returns what a batch of the bare base uses."""
    return Active(jnp.zeros(groups, jnp.int32), jnp.ones(1))


@jax.custom_vjp
def _up(low: jax.Array, b: jax.Array) -> jax.Array:
    """Returns low [g, b, s, r] times b [g, r, o], as [g, b, s, o].

    The derivative is spelled out, because jax makes the gradient [g, b, s, o] the left factor in
    that of b, and XLA on a CPU first transposes a left factor that is contracted over its rows.
    Here this is the narrow `low`.
    """
    return jnp.einsum("gbsr,gro->gbso", low, b)


def _up_forward(low: jax.Array, b: jax.Array):
    return _up(low, b), (low, b)


def _up_backward(factors: tuple[jax.Array, jax.Array], gradient: jax.Array):
    low, b = factors
    return (
        jnp.einsum("gbso,gro->gbsr", gradient, b),
        jnp.einsum("gbsr,gbso->gro", low, gradient),
    )


_up.defvjp(_up_forward, _up_backward)


class LoraLinear(nnx.Module):
    """y = x W (+ bias) + scale * (x A) B, with A and B of the adapter that each group names.

    The kernels are stacked over layers: inside the model's scan the leading axis `l` is gone.
    A and B lie transposed to PEFT's (`[i, r]` and `[r, o]`), so that both products are plain
    matrix products over contiguous rows. They start as zeros: `models.stacking` draws fresh
    adapters or fills in stored ones.

    Args:
      name: of the projection; its dropout is drawn by it.
      layers: l, how many layers are stacked.
      shape: (i, o).
      axes: logical names of (i, o), for sharding.
      lora: the adapters, or None.
      bias: whether the base has one.
      dtype: of the base kernel and of the computation. LoRA factors are float32.
    """

    def __init__(
        self,
        name: str,
        layers: int,
        shape: tuple[int, int],
        axes: tuple[str, str],
        lora: LoraSpec | None,
        *,
        bias: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        i, o = shape
        self.kernel = BaseParam(
            (jax.random.normal(rngs.params(), (layers, i, o)) * 0.02).astype(dtype),
            axes=("layers", *axes),
        )
        if bias:
            self.bias = BaseParam(jnp.zeros((layers, o), dtype), axes=("layers", axes[1]))
        if lora:
            self.dropout, self.salt = lora.dropout, zlib.crc32(name.encode())
            self.lora_a = LoraParam(
                jnp.zeros((layers, lora.n, i, lora.rank)),
                axes=("layers", "adapters", axes[0], None),
            )
            self.lora_b = LoraParam(
                jnp.zeros((layers, lora.n, lora.rank, o)),
                axes=("layers", "adapters", None, axes[1]),
            )

    def __call__(self, x: jax.Array, active: Active) -> jax.Array:
        """Args: x [g, b, s, i]; active, with keys of this layer. Returns [g, b, s, o]."""
        y = jnp.einsum("gbsi,io->gbso", x, self.kernel[...])
        if hasattr(self, "bias"):
            y += self.bias[...]
        if hasattr(self, "lora_a"):
            ids = active.ids
            a = self.lora_a[...][ids].astype(x.dtype)  # [g, i, r]
            b = self.lora_b[...][ids] * active.scale[ids][:, None, None]  # [g, r, o]
            low = jnp.einsum("gbsi,gir->gbsr", self._dropped(x, active.keys), a)
            y += _up(low, b.astype(x.dtype))
        return y

    def _dropped(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        if keys is None or not self.dropout:
            return x

        def keep(key: jax.Array) -> jax.Array:
            return jax.random.bernoulli(
                jax.random.fold_in(key, self.salt), 1 - self.dropout, x.shape[2:]
            )

        kept = jax.vmap(jax.vmap(keep))(keys)
        return jnp.where(kept, x / (1 - self.dropout), 0).astype(x.dtype)
