"""Sparsifiers: what is dropped from each adapter's coordinates before they are combined.

A sparsifier sees the coordinates of one module, `[n, rows, columns]` for n adapters, and a `Draw`.
A new one is a function of that form and a line in `SPARSIFIERS`. Small modules come padded with
zeros at the end of rows and columns; `Draw.columns` tells the real ones where it matters.
"""

import hashlib
import json
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from langmerge_jax.merging import select
from langmerge_jax.merging.threefry import random_uniform

# One array an adapter. Left apart rather than stacked, the last step of a sparsifier joins the pass
# of the consensus over the entries.
Parts = Sequence[jax.Array] | jax.Array


class Draw(NamedTuple):
    """What a sparsifier may use beside the coordinates of a module.

    Attributes:
        density: Scalar in (0, 1), the share of entries to keep.
        count: int32 scalar, `int(density * N)` in Python's float64; N the entries that are not zero
            by construction, or for SCE those that differ between adapters.
        key_words: `[n, 2]` uint32, one random key an adapter (see `key_words`).
        columns: int32 scalar, the columns that are no padding.
        epsilon: Scalar, DELLA's.
        outliers: int32 scalar, how many of the largest entries Breadcrumbs drops: `int(gamma * N)`,
            or fewer where `count` would not be left.
        rescale: `inverse` or `l1`; known when traced.
        given: None, or for a scope wider than this module the thresholds `[n]` (bit patterns) and
            how many entries that equal them are kept, `[n]` int32.
    """

    density: jax.Array
    count: jax.Array
    key_words: jax.Array
    columns: jax.Array
    epsilon: jax.Array
    outliers: jax.Array
    rescale: str = "inverse"
    given: tuple[jax.Array, jax.Array] | None = None


def magnitude(x: jax.Array, draw: Draw) -> Parts:
    """Keeps the `draw.count` entries of largest magnitude of each adapter, without rescaling.

    The scope is one module, as in PEFT and mergekit, or all modules at once (`draw.given`), as in
    the paper and its official code.

    References:
        Yadav et al., TIES-Merging (arXiv 2306.01708), section 4, step 1.
    """
    if draw.given is not None:
        return _keep(x, lambda args: select.tied(*args), (x, *draw.given))
    # One adapter at a time: the search ends when its own count is reached, and the working memory
    # is that of one adapter. Its own counting fills the device.
    return _keep(x, lambda args: select.largest(args[0], draw.count), (x,))


def magnitude_mergekit(x: jax.Array, draw: Draw) -> Parts:
    """As `magnitude`, but at least one entry is kept.

    References:
        mergekit's `sparsify.magnitude`, from 0.1.5.
    """
    return magnitude(x, draw._replace(count=jnp.maximum(draw.count, 1)))


def magnitude_official(x: jax.Array, draw: Draw) -> Parts:
    """Keeps one entry more than `draw.count`, and all that equal the last one kept.

    References:
        The official code of TIES-Merging and KnOTS, `topk_values_mask`: what reaches the
        (N - k)-th smallest magnitude.
    """
    if draw.given is not None:
        return magnitude(x, draw)
    return _keep(x, lambda args: select.at_least(args[0], draw.count + 1), (x,))


def _keep(x: jax.Array, cut: Callable[[tuple], select.Cut], of_adapters: tuple) -> Parts:
    cuts = lax.map(cut, of_adapters)
    return [
        jnp.where(select.kept(v, select.Cut(*cut)), v, 0) for v, *cut in zip(x, *cuts, strict=True)
    ]


def dare(x: jax.Array, draw: Draw) -> Parts:
    """Keeps each entry with probability `draw.density` and divides it by that.

    With `rescale` `l1` the adapter gets its former L1 norm back instead.

    References:
        Yu et al., DARE (arXiv 2311.03099), section 3: the factor is 1 / (1 - p), p the drop rate.
        mergekit since 0.1 rescales to the L1 norm.
    """
    # A float32 probability whatever x is, so that float64 draws the same mask.
    limit = draw.density.astype(jnp.float32)
    keep = random_uniform(draw.key_words, x.shape) < limit
    if draw.rescale == "l1":
        return _restored(x, keep)
    # A product: XLA makes one of the division on some numbers of devices, and not on others.
    return jnp.where(keep, x * (1 / draw.density), 0)


def della(x: jax.Array, draw: Draw) -> Parts:
    """Keeps entries with a probability that grows with their rank in their row.

    The ranks of a row by magnitude, ascending, spread the probability evenly from density - epsilon
    to density + epsilon; survivors are divided by their own probability, or with `rescale` `l1` the
    adapter gets its former L1 norm back. Rows are those of the coordinates: of the outputs of a
    linear layer, and of the inputs of an embedding, whose delta lies transposed.

    References:
        Deep et al., DELLA-Merging (arXiv 2406.11617), section 3.1, MagPrune; mergekit's
        `della_magprune` restores the L1 norm.
    """
    magnitude = jnp.abs(x)
    real = lax.broadcasted_iota(jnp.int32, x.shape, 2) < draw.columns
    # Padding sorts behind everything.
    order = jnp.argsort(jnp.where(real, magnitude, jnp.inf), axis=2, stable=True)
    rank = jnp.argsort(order, axis=2)
    place = rank / jnp.maximum(draw.columns - 1, 1)  # A row of one column gets density - epsilon.
    probability = (draw.density - draw.epsilon) + 2 * draw.epsilon * place
    probability = probability.astype(jnp.float32)
    keep = random_uniform(draw.key_words, x.shape) < probability
    if draw.rescale == "l1":
        return _restored(x, keep)
    return jnp.where(keep, x / probability.astype(x.dtype), 0)


def breadcrumbs(x: jax.Array, draw: Draw) -> Parts:
    """Drops each adapter's `draw.outliers` largest entries, and keeps the next `draw.count`.

    References:
        Davari & Belilovsky, Model Breadcrumbs (arXiv 2312.06795), section 3; gamma is its beta.
    """

    def cuts(v):
        return select.largest(v, draw.count + draw.outliers), select.largest(v, draw.outliers)

    wide, narrow = lax.map(cuts, x)
    return [
        jnp.where(select.kept(v, w) & ~select.kept(v, o), v, 0)
        for v, w, o in zip(x, map(select.Cut, *wide), map(select.Cut, *narrow), strict=True)
    ]


def sce(x: jax.Array, draw: Draw) -> Parts:
    """Keeps the entries whose variance over the adapters is largest, the same for all adapters.

    References:
        Wan et al., FuseChat (arXiv 2408.07990), section 3.2, "select".
    """
    variance = variance_over_adapters(x)
    return jnp.where(select.kept(variance, select.largest(variance, draw.count)), x, 0)


def variance_over_adapters(x: jax.Array) -> jax.Array:
    """The variance of each entry over the adapters, of the shape of one of them."""
    # From one adapter as the origin, entries on which all agree have exactly none.
    from_first = [v - x[0] for v in x]
    mean = sum(from_first[1:], from_first[0]) / x.shape[0]
    squares = [jnp.square(v - mean) for v in from_first]
    return sum(squares[1:], squares[0]) / x.shape[0]


def _restored(x: jax.Array, keep: jax.Array) -> jax.Array:
    """The kept entries, times what gives each adapter its L1 norm back."""
    masked = jnp.where(keep, x, 0)
    before, after = (jnp.sum(jnp.sum(jnp.abs(v), axis=2), axis=1) for v in (x, masked))
    gain = jnp.where(after > 0, before / jnp.where(after > 0, after, 1), 1)
    return gain[:, None, None] * masked


# None drops nothing, and takes no density.
SPARSIFIERS: dict[str, Callable[[jax.Array, Draw], Parts] | None] = {
    "none": None,
    "magnitude": magnitude,
    "magnitude_mergekit": magnitude_mergekit,
    "magnitude_official": magnitude_official,
    "dare": dare,
    "della": della,
    "breadcrumbs": breadcrumbs,
    "sce": sce,
}


# Those that draw.
RANDOM = ("dare", "della")


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
