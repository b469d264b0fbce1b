"""Sparsifiers: what is dropped from each adapter's coordinates before they are combined.

A sparsifier sees the coordinates of one module, `[n, N]` for n adapters, and a `Draw`. A new one
is a function of that form and a line in `SPARSIFIERS`.
"""

import hashlib
import json
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langmerge_jax.merging.select import keep_largest


class Draw(NamedTuple):
    """What a sparsifier may use beside the coordinates of a module.

    Attributes:
        density: Scalar in (0, 1], the share of entries to keep.
        count: int32 scalar, the number of entries to keep of each adapter:
            `int(density * N)` in Python's float64, N the entries that are not zero by construction.
        key_words: `[n, 2]` uint32, one random key an adapter (see `key_words`).
    """

    density: jax.Array
    count: jax.Array
    key_words: jax.Array


def magnitude(x: jax.Array, draw: Draw) -> jax.Array:
    """Keeps the `draw.count` entries of largest magnitude of each adapter, without rescaling.

    The scope is one module, as in PEFT and mergekit; the paper and its official code rank over
    all modules at once.

    References:
        Yadav et al., TIES-Merging (arXiv 2306.01708), section 4, step 1.
    """
    # One adapter at a time: the search ends when its own count is reached, and the working memory
    # is that of one adapter. Its own counting fills the device.
    return jax.lax.map(lambda entries: keep_largest(entries, draw.count), x)


def dare(x: jax.Array, draw: Draw) -> jax.Array:
    """Keeps each entry with probability `draw.density` and divides it by that.

    References:
        Yu et al., DARE (arXiv 2311.03099), section 3: the factor is 1 / (1 - p), p the drop rate.
        mergekit since 0.1 rescales to the former L1 norm instead.
    """
    # Named, so that no setting of the program changes a mask. Partitionable bits depend on the
    # key and the position alone, not on the array's length or how it is sharded.
    with jax.threefry_partitionable(True):
        keys = jax.random.wrap_key_data(draw.key_words, impl="threefry2x32")
        # A float32 probability whatever x is, so that float64 draws the same mask.
        density = draw.density.astype(jnp.float32)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, density, x.shape[1:]))(keys)
    return jnp.where(keep, x / draw.density, 0)


# None drops nothing, and takes no density.
SPARSIFIERS: dict[str, Callable[[jax.Array, Draw], jax.Array] | None] = {
    "none": None,
    "magnitude": magnitude,
    "dare": dare,
}


def key_words(seed: int, adapter: str, module: str, part: int) -> np.ndarray:
    """The random key of one adapter in one module, two uint32.

    It is a hash of names only, so neither the other adapters nor the order, batching or sharding
    of the work can change what is drawn.

    Args:
        seed: Any integer.
        adapter, module: The adapter's name and the module's path.
        part: Which of the space's coordinate arrays.
    """
    text = json.dumps([operator.index(seed), adapter, module, part])
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return np.frombuffer(digest[:8], "<u4").astype(np.uint32)
