"""Merging in float64 numpy, written from the papers and as plainly as they are.

Task vectors are whole matrices here and the SVD is that of the whole concatenation; nothing is
shared with `langmerge_jax.merging`.
"""

import numpy as np


def task_vector(factors):
    return factors.scale * factors.b.astype(np.float64) @ factors.a.astype(np.float64)


def trim(x, count):
    """Keeps the `count` largest magnitudes, the first of equal ones (TIES, step 1)."""
    order = np.argsort(-np.abs(x).ravel(), kind="stable")
    kept = np.zeros(x.size)
    kept[order[:count]] = x.ravel()[order[:count]]
    return kept.reshape(x.shape)


def elect_and_merge(xs, weights):
    """Sign of the weighted sum (+ if zero), weighted mean of what agrees (TIES, steps 2 and 3)."""
    merged = np.zeros(xs[0].shape)
    for position in np.ndindex(*merged.shape):
        values = [x[position] for x in xs]
        total = sum(w * v for w, v in zip(weights, values, strict=True))
        sign = 1 if total >= 0 else -1
        agreeing = [
            (w, v) for w, v in zip(weights, values, strict=True) if v != 0 and np.sign(v) == sign
        ]
        if agreeing:
            merged[position] = sum(w * v for w, v in agreeing) / sum(w for w, _ in agreeing)
    return merged


def ties(deltas, weights, density):
    """TIES on task vectors, trimmed to int(d * N) in each."""
    return elect_and_merge([trim(x, int(density * x.size)) for x in deltas], weights)


def knots_coordinates(deltas):
    """U and each task's S V of [D_1 | ... | D_n] = U S V, without directions of s <= 1e-5."""
    u, s, v = np.linalg.svd(np.concatenate(deltas, axis=1), full_matrices=False)
    kept = s > 1e-5
    sv = s[kept, None] * v[kept]
    return u[:, kept], np.split(sv, len(deltas), axis=1)


def ties_knots(deltas, weights, density):
    """TIES on the S V of each task, trimmed to int(d * N) in each, and back."""
    u, coordinates = knots_coordinates(deltas)
    return u @ ties(coordinates, weights, density)
