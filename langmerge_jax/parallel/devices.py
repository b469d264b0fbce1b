"""What the devices at hand can do."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_ROUNDS, _CALLS = 5, 10


class Speed(NamedTuple):
    """What a device does at best, as measured.

    Attributes:
      flops: FLOP/s of a product of large matrices.
      copy: bytes a second that a copy in its memory reads and writes, together.
    """

    flops: float
    copy: float


def measure_speed(device: jax.Device, dtype: jnp.dtype, *, side: int, copied: int) -> Speed:
    """Measures a matrix product and a copy on a device.

    Args:
      device: of this process.
      dtype: of the product.
      side: of the matrices.
      copied: bytes.
    """
    with jax.default_device(device):
        # Random ones: on zeros a GPU draws less power and is faster.
        x, y = (jax.random.normal(jax.random.key(i), (side,) * 2, dtype) for i in range(2))
        product = _seconds(jax.jit(jnp.matmul), x, y)
        # Read and written, apart, so that no result takes over its argument's memory.
        copy = _seconds(jax.jit(lambda x: x + 1), jnp.zeros(copied // 4, jnp.float32))
    return Speed(2 * side**3 / product, 2 * copied / copy)


def _seconds(function: Callable, *args: jax.Array) -> float:
    """The median over rounds of calls that follow one another, compiled before."""
    jax.block_until_ready(function(*args))
    taken = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(_CALLS):
            found = function(*args)
        jax.block_until_ready(found)
        taken.append((time.perf_counter() - start) / _CALLS)
    return statistics.median(taken)
