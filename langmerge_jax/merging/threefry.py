"""Random numbers by position: Threefry-2x32, unrolled so that it joins the pass that uses it.

`jax.random` draws from the same family, but on a CPU runs its rounds as a loop over whole arrays in
memory.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA

# What `random_uniform` is; results that were made with another are made anew.
STREAM = "threefry2x32 of (row, column), first word, 24 bits"


def threefry2x32(
    key: tuple[jax.Array, jax.Array], counter: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Enciphers counters, in 20 rounds.

    Args:
        key, counter: Two uint32 arrays each; all four broadcast against each other.

    Returns:
        Two uint32 arrays of random bits.

    References:
        Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC11).
    """
    keys = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for group, rotations in zip(range(1, 6), itertools.cycle(_ROTATIONS), strict=False):
        for bits in rotations:
            x = x + y
            y = x ^ ((y << bits) | (y >> (32 - bits)))
        x = x + keys[group % 3]
        y = y + keys[(group + 1) % 3] + jnp.uint32(group)
    return x, y


def random_uniform(key_words: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform multiples of 2**-24 in [0, 1) that depend on the key, row and column alone, float32.

    Args:
        key_words: `[n, 2]` uint32.
        shape: `(n, rows, columns)`.
    """
    row, column = (lax.broadcasted_iota(jnp.uint32, (1, *shape[1:]), axis) for axis in (1, 2))
    key = key_words[:, 0, None, None], key_words[:, 1, None, None]
    bits, _ = threefry2x32(key, (row, column))
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)
