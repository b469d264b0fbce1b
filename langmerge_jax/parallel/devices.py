"""What the devices at hand can do."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from langmerge_jax.parallel.memory import USABLE, free_memory
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.parallel.topologies import Chip

_SIDE, _COPIED = 2048, 2**28


def measure_device(device: jax.Device, dtype: jnp.dtype) -> Chip:
    """Measures a matrix product and a copy on a device; how fast its links are is not known.

    Its memory is what is free now.

    Args:
      device: of this process.
      dtype: of the product.
    """
    with jax.default_device(device):
        x = jnp.ones((_SIDE, _SIDE), dtype)
        product = _seconds(jax.jit(jnp.matmul), x, x)
        # Read and written, apart, so that no result takes over its argument's memory.
        copy = _seconds(jax.jit(lambda x: x + 1), jnp.zeros(_COPIED // 4, jnp.float32))
    memory = free_memory(make_mesh()) / USABLE
    return Chip(memory, 2 * _SIDE**3 / product, 2 * _COPIED / copy, None)


def _seconds(function: Callable, *args: jax.Array) -> float:
    """The least of several calls, compiled before."""
    jax.block_until_ready(function(*args))
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        taken.append(time.perf_counter() - start)
    return min(taken)
