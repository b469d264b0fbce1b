"""What becomes of fully trained modules, such as a classifier head, when adapters are merged."""

import functools
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from langmerge_jax.adapters import Adapter
from langmerge_jax.errors import InputError

_BLOCK = 2**22  # Entries that are widened at once.


def merged_heads(
    adapters: Mapping[str, Adapter],
    choice: str,
    weights: Callable[[str], np.ndarray],
    dtype: np.dtype | None,
) -> dict[str, np.ndarray]:
    """Returns the fully trained tensors of a merge.

    Args:
        adapters: By name, in the order of the weights.
        choice: `refuse`; `average`, by the weights; or `from=<adapter>`.
        weights: From a tensor's name to the adapters' weights; asked for an average only.
        dtype: Of the result; the adapters' widest if None.

    Raises:
        InputError: If there are any and `choice` is `refuse`, or it does not fit the adapters.
    """
    having = {name: adapter for name, adapter in adapters.items() if adapter.heads}
    how, _, chosen = choice.partition("=")
    if choice not in ("refuse", "average") and not (how == "from" and chosen in adapters):
        known = ", ".join(f"from={name}" for name in adapters)
        raise InputError(f"heads: {choice!r} is none of refuse, average, {known}")
    if not having:
        return {}
    names = sorted({tensor for adapter in having.values() for tensor in adapter.heads})
    if how == "refuse":
        first = next(iter(having))
        tensor = next(iter(having[first].heads))
        raise InputError(
            f"adapter {first!r}: {tensor} was trained in full and is no low-rank change; "
            f"heads=average averages it, heads=from={first} takes that of one adapter"
        )
    if how == "average":
        return {tensor: _average(adapters, tensor, weights(tensor), dtype) for tensor in names}
    for tensor in names:
        if tensor not in adapters[chosen].heads:
            raise InputError(f"heads: adapter {chosen!r} has no {tensor}; take those of another")
    found = adapters[chosen].heads
    return {t: x if dtype is None else x.astype(dtype) for t, x in found.items()}


def _average(
    adapters: Mapping[str, Adapter],
    tensor: str,
    weights: np.ndarray,
    dtype: np.dtype | None,
) -> np.ndarray:
    found = []
    for name, adapter in adapters.items():
        if tensor not in adapter.heads:
            raise InputError(
                f"heads: adapter {name!r} has no {tensor} to average; heads=from=<adapter> takes "
                "those of one"
            )
        found.append(adapter.heads[tensor])
        if found[-1].shape != found[0].shape:
            raise InputError(
                f"heads: {tensor} has shape {found[-1].shape} in adapter {name!r}, "
                f"{found[0].shape} in {next(iter(adapters))!r}; heads=from=<adapter> takes one"
            )
    if weights.sum() <= 0 or (weights < 0).any():
        raise InputError(
            f"heads: {tensor} cannot be averaged by the weights {weights.tolist()}; "
            "heads=from=<adapter> takes that of one"
        )
    shares = weights / weights.sum()
    widest = functools.reduce(jnp.promote_types, {x.dtype for x in found})
    merged = np.empty(found[0].shape, dtype or widest)
    flat = [x.reshape(-1) for x in found]
    for start in range(0, merged.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        total = sum(w * x[part].astype(np.float64) for w, x in zip(shares, flat, strict=True))
        merged.reshape(-1)[part] = total
    return merged
