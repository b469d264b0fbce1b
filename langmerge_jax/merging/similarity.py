"""How alike the adapters of a merge are, without building what full rank would need at once."""

from collections.abc import Mapping, Sequence

import numpy as np

from langmerge_jax.adapters import Adapter, Factors, check_same_base


def cosines(adapters: Mapping[str, Adapter], *, allow_base_mismatch: bool = False) -> np.ndarray:
    """Returns the cosine between the deltas of every two adapters, all modules together.

    Args:
        adapters: n adapters by name; ranks may differ.
        allow_base_mismatch: Whether the base models may have different names.

    Returns:
        float64 [n, n] in the order of the mapping; NaN for an adapter that changes nothing.

    Raises:
        InputError: If the adapters do not belong together.
    """
    check_same_base(adapters, allow_base_mismatch=allow_base_mismatch)
    found = list(adapters.values())
    products = np.zeros((len(found), len(found)))
    for path in found[0].modules:
        products += inner_products([adapter.modules[path] for adapter in found], np.float64)
    return normalised(products)


def inner_products(stack: Sequence[Factors], dtype: np.typing.DTypeLike = np.float32) -> np.ndarray:
    """Returns the inner products between the deltas of one module of n adapters.

    Computed from the factors: <s B A, s' B' A'> = s s' sum((B^T B') * (A A'^T)), an entrywise
    product of two [rank, rank'] matrices.

    Args:
        stack: One module's factors of every adapter.
        dtype: Of the matrix products; their entries are added in float64.

    Returns:
        float64 [n, n].
    """
    a = np.concatenate([factors.a.astype(dtype) for factors in stack], axis=0)
    b = np.concatenate([factors.b.astype(dtype) for factors in stack], axis=1)
    entries = np.multiply(b.T @ b, a @ a.T, dtype=np.float64)
    starts = np.cumsum([0, *(factors.rank for factors in stack)])[:-1]
    sums = np.add.reduceat(np.add.reduceat(entries, starts, axis=0), starts, axis=1)
    scales = np.array([factors.scale for factors in stack])
    return scales[:, None] * sums * scales


def normalised(products: np.ndarray) -> np.ndarray:
    """Returns cosines from inner products `[n, n]`; NaN where a norm is zero."""
    norms = np.sqrt(np.diag(products))
    with np.errstate(divide="ignore", invalid="ignore"):
        return products / np.outer(norms, norms)


def sign_conflict(stack: Sequence[Factors], rows: int | None = None) -> float:
    """Returns how much of some adapters' deltas of one module goes against the elected sign.

    The elected sign of an entry is that of the sum over adapters, as TIES elects it; the share is
    of the sum of absolute values, 0 where all agree and at most one half.

    Args:
        stack: One module's factors of every adapter; one delta is built at a time.
        rows: Estimate it from so many of the outputs, evenly spread; None takes all.
    """
    mass, against = sign_masses(stack, rows)
    return against / mass if mass else 0.0


def sign_masses(stack: Sequence[Factors], rows: int | None = None) -> tuple[float, float]:
    """Returns the sum of absolute values of all deltas, and of that what goes against the sign."""
    outputs = stack[0].out_features
    if rows is None or rows >= outputs:
        chosen = slice(None)
    else:
        chosen = np.linspace(0, outputs - 1, rows).round().astype(int)
    total = mass = np.zeros((), np.float32)
    for factors in stack:
        delta = factors.b[chosen].astype(np.float32) @ factors.a.astype(np.float32)
        delta *= np.float32(factors.scale)
        total, mass = total + delta, mass + np.abs(delta)
    whole = float(np.sum(mass, dtype=np.float64))
    return whole, (whole - float(np.sum(np.abs(total), dtype=np.float64))) / 2
