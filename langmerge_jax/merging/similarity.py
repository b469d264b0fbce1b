"""How alike the adapters of a merge are, without building what full rank would need at once."""

from collections.abc import Mapping, Sequence

import numpy as np

from langmerge_jax.adapters import Adapter, Factors, check_same_base


def cosines(adapters: Mapping[str, Adapter], *, check_base_name: bool = True) -> np.ndarray:
    """Returns the cosine between the deltas of every two adapters, all modules together.

    Computed from the factors: <s B A, s' B' A'> = s s' sum((B^T B') * (A A'^T)), an entrywise
    product of two [rank, rank'] matrices.

    Args:
        adapters: n adapters by name; ranks may differ.
        check_base_name: Whether the adapters' base models must have the same name.

    Returns:
        float64 [n, n] in the order of the mapping; NaN for an adapter that changes nothing.

    Raises:
        InputError: If the adapters do not belong together.
    """
    check_same_base(adapters, check_base_name=check_base_name)
    found = list(adapters.values())
    products = np.zeros((len(found), len(found)))
    for path in found[0].modules:
        for i, one in enumerate(found):
            for j, other in enumerate(found[: i + 1]):
                products[i, j] += _inner(one.modules[path], other.modules[path])
    products = products + np.tril(products, -1).T
    norms = np.sqrt(np.diag(products))
    with np.errstate(divide="ignore", invalid="ignore"):
        return products / np.outer(norms, norms)


def _inner(one: Factors, other: Factors) -> float:
    a, b, c, d = (x.astype(np.float64) for x in (one.a, one.b, other.a, other.b))
    return float(one.scale * other.scale * np.sum((b.T @ d) * (a @ c.T)))


def sign_conflict(stack: Sequence[Factors]) -> float:
    """Returns how much of some adapters' deltas of one module goes against the elected sign.

    The elected sign of an entry is that of the sum over adapters, as TIES elects it; the share is
    of the sum of absolute values, 0 where all agree and at most one half.

    Args:
        stack: one module's factors of every adapter; one delta `[out, in]` is built at a time.
    """
    total = mass = np.zeros((), np.float32)
    for factors in stack:
        delta = factors.scale * (factors.b.astype(np.float32) @ factors.a.astype(np.float32))
        total, mass = total + delta, mass + np.abs(delta)
    whole = float(np.sum(mass, dtype=np.float64))
    against = whole - float(np.sum(np.abs(total), dtype=np.float64))
    return against / 2 / whole if whole else 0.0
