"""Adds dense deltas to a base's weights, module by module."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from langmerge_jax.errors import InputError
from langmerge_jax.models.stacking import MODULE


@functools.partial(jax.jit, donate_argnums=0)
def _add(kernel: jax.Array, layer: jax.Array, delta: jax.Array) -> jax.Array:
    """Args: kernel [l, i, o]; delta float32 [o, i], as Hugging Face lays weights out."""
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    return kernel.at[layer].set((kernel[layer].astype(wide) + delta.T).astype(kernel.dtype))


def fold(params: nnx.State, deltas: Iterable[tuple[str, np.ndarray]]) -> nnx.State:
    """Returns base weights plus deltas; the base's own arrays stay as they are.

    Args:
      params: state of the bare `Llama`.
      deltas: (module path, [out, in]) one at a time, each added in at least float32 and rounded
        once.

    Raises:
      InputError: for a module the model does not have, or of another shape.
    """
    leaves = dict(nnx.to_flat_state(params))
    kernels: dict[tuple, jax.Array] = {}
    for module, delta in deltas:
        match = MODULE.fullmatch(module)
        path = ("layers", match[2], match[3], "kernel") if match else ()
        if path not in leaves or int(match[1]) >= leaves[path].shape[0]:
            raise InputError(f"the base model has no module {module}")
        if path not in kernels:
            kernels[path] = jnp.copy(leaves[path][...])
        if delta.shape[::-1] != kernels[path].shape[1:]:
            raise InputError(
                f"{module}: the merge has shape {list(delta.shape)}, the base model "
                f"{list(kernels[path].shape[:0:-1])}"
            )
        kernels[path] = _add(kernels[path], int(match[1]), delta)
    leaves |= {path: leaves[path].replace(kernel) for path, kernel in kernels.items()}
    return nnx.from_flat_state(list(leaves.items()))
