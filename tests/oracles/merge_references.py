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
    sv = np.split(s[kept, None] * v[kept], len(deltas), axis=1)
    # Those of a task vector of zeros are zeros, of which the SVD makes rounding noise.
    return u[:, kept], [x * d.any() for x, d in zip(sv, deltas, strict=True)]


def ties_knots(deltas, weights, density):
    """TIES on the S V of each task, trimmed to int(d * N) in each, and back."""
    u, coordinates = knots_coordinates(deltas)
    return u @ ties(coordinates, weights, density)


def vote(xs, weights, sign="total", election="weighted", divisor="weights", zero_sign=1):
    """The other elections and divisors of TIES: those of PEFT, mergekit and the official code.

    Under a weighted election an adapter of negative weight speaks for the other sign.
    """
    xs, weights = np.stack(xs), np.asarray(weights, float).reshape(-1, *[1] * xs[0].ndim)
    ballots = weights * xs if election == "weighted" else xs
    say = np.sign(xs) if sign == "frequency" else xs
    total = np.sum(weights * say if election == "weighted" else say, axis=0)
    elected = np.where(total == 0, zero_sign, np.sign(total))
    agrees = np.sign(ballots) == elected
    merged = np.sum(agrees * weights * xs, axis=0)
    if divisor == "none":
        return merged
    share = np.sum(agrees * (weights if divisor == "weights" else 1), axis=0)
    return np.divide(merged, share, out=np.zeros(merged.shape), where=share != 0)


def weighted_sum(xs, weights):
    """Task arithmetic; also what TIES elects the sign of."""
    return np.tensordot(weights, np.stack(xs), axes=1)


def trim_official(x, count):
    """One more than the `count` largest, and all that equal the last (`topk_values_mask`)."""
    threshold = np.sort(np.abs(x), axis=None)[x.size - count - 1]
    return np.where(np.abs(x) >= threshold, x, 0)


def trim_together(arrays, density, cut=trim):
    """One adapter's modules, trimmed as if they were one vector."""
    flat = np.concatenate([x.ravel() for x in arrays])
    flat = cut(flat, int(density * flat.size))
    ends = np.cumsum([x.size for x in arrays])[:-1]
    return [y.reshape(x.shape) for x, y in zip(arrays, np.split(flat, ends), strict=True)]


def ties_together(modules, weights, density):
    """TIES of modules, each a list of one array an adapter, trimmed over all modules."""
    trimmed = [trim_together(one, density) for one in zip(*modules, strict=True)]
    return [elect_and_merge(xs, weights) for xs in zip(*trimmed, strict=True)]


def ties_official(modules, density, majority=None):
    """The official code: trims all modules together, zero sums take the commoner sign of all."""
    trimmed = [trim_together(one, density, trim_official) for one in zip(*modules, strict=True)]
    columns = list(zip(*trimmed, strict=True))
    signs = np.concatenate([np.sign(sum(xs)).ravel() for xs in columns])
    majority = majority or (1 if signs.sum() > 0 else -1)
    ones = np.ones(len(trimmed))
    return [vote(xs, ones, "total", "unweighted", "count", majority) for xs in columns]


def knots_official(modules, density):
    """`SVDMerger`: the official TIES on the S V of every module, from B A without its scale.

    Args:
        modules: For each module a list of `b @ a`, one an adapter.
    """
    bases = [knots_coordinates(deltas) for deltas in modules]
    merged = ties_official([coordinates for _, coordinates in bases], density)
    return [u @ m for (u, _), m in zip(bases, merged, strict=True)]


def knots_v_coordinates(deltas):
    """U, S and each task's V of [D_1 | ... | D_n] = U S V (KnOTS as its paper writes it)."""
    u, sv = knots_coordinates(deltas)
    s = np.linalg.norm(np.concatenate(sv, axis=1), axis=1)
    return u, s, [x / s[:, None] for x in sv]


def ties_knots_v(deltas, weights, density):
    """TIES on the V of each task; S is multiplied to what comes out."""
    u, s, coordinates = knots_v_coordinates(deltas)
    return (u * s) @ ties(coordinates, weights, density)


def core_coordinates(factors):
    """U_b, V_a and each task's core U_b^T D_i V_a (Core Space, section 3)."""
    u_b, _, _ = np.linalg.svd(np.concatenate([f.b for f in factors], 1).astype(float), False)
    _, _, v_a = np.linalg.svd(np.concatenate([f.a for f in factors], 0).astype(float), False)
    return u_b, v_a, [u_b.T @ task_vector(f) @ v_a.T for f in factors]


def ties_core(factors, weights, density):
    """TIES on the cores, and back."""
    u_b, v_a, cores = core_coordinates(factors)
    return u_b @ ties(cores, weights, density) @ v_a


def soup(deltas, weights):
    """The weighted mean."""
    return weighted_sum(deltas, weights) / np.sum(weights)


def dare(x, keep, density):
    """What a mask leaves, divided by the share it leaves on average (DARE, section 3)."""
    return np.where(keep, x, 0) / density


def restored(x, keep):
    """What a mask leaves, scaled to the L1 norm before (mergekit)."""
    left = np.where(keep, x, 0)
    return left * (np.abs(x).sum() / np.abs(left).sum())


def della_probabilities(x, density, epsilon):
    """MagPrune: by rank in the row, from density - epsilon for the smallest to + epsilon."""
    probabilities = np.zeros(x.shape)
    for row, values in enumerate(x):
        for rank, column in enumerate(np.argsort(np.abs(values), kind="stable")):
            spread = 2 * epsilon * rank / (len(values) - 1)
            probabilities[row, column] = density - epsilon + spread
    return probabilities


def della(x, uniform, density, epsilon):
    """Keeps entries whose uniform draw is below their probability, divided by that."""
    p = della_probabilities(x, density, epsilon)
    return np.where(uniform < p, x, 0) / p


def breadcrumbs(x, density, gamma):
    """Without the int(gamma N) largest, the next int(d N) (Model Breadcrumbs)."""
    count, outliers = int(density * x.size), int(gamma * x.size)
    outliers = min(outliers, x.size - count)
    return trim(x, count + outliers) - trim(x, outliers)


def sce_select(deltas, density):
    """Keeps the int(d N') entries that vary most, N' those that vary at all (SCE, "select")."""
    variance = np.var(np.stack(deltas), axis=0)
    variance[np.all(np.stack(deltas) == deltas[0], axis=0)] = 0  # without numpy's rounding
    kept = trim(variance, int(density * np.count_nonzero(variance))) != 0
    return [np.where(kept, x, 0) for x in deltas]


def sce(deltas, density, weights=None):
    """SCE: select, weigh by mean squares, erase by the sign of the plain sum."""
    xs = sce_select(deltas, density) if density < 1 else deltas
    energies = np.array([np.mean(x**2) for x in xs])
    weights = energies if weights is None else energies * weights
    return vote(xs, weights, election="unweighted")


def truncated(delta, rank):
    """The closest matrix of a rank, and its share of the squared singular values."""
    u, s, v = np.linalg.svd(delta, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank], np.sum(s[:rank] ** 2) / np.sum(s**2)
