"""How sure a score is: bootstrap intervals, and verdicts on the difference between two variants.

Examples are drawn anew with replacement, the same draw for every variant, so that two variants are
compared on the same examples. Languages are drawn apart from each other: each keeps its size.

References: Efron & Tibshirani 1993, chapters 13 and 16 (percentile interval, paired differences);
Holm 1979 (several comparisons in one table); Piaggio et al. 2012 (non-inferiority and its margin).
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np

SAMPLES = 4000
LEVEL = 0.95
# Draws of fewer rows say too little of others.
FEWEST = 10


def draws(n: int, *, seed: Sequence[int], samples: int = SAMPLES) -> np.ndarray:
    """Returns how often each of n examples is drawn, uint8 [samples, n]; rows add up to n."""
    rng = np.random.default_rng(seed)
    counts = np.empty((samples, n), np.uint8)
    for row in counts:
        # Never near 256: of n examples one is drawn k times with probability below 1 / k!.
        row[:] = np.bincount(rng.integers(n, size=n), minlength=n)
    return counts


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """Returns the percentile interval of bootstrap replicates [samples].

    Draws that define no score are NaN and left out; without any other both ends are NaN.
    """
    replicates = replicates[np.isfinite(replicates)]
    if not replicates.size:
        return math.nan, math.nan
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A variant against a reference, on the same examples.

    Attributes:
      difference: score of the variant minus score of the reference.
      low, high: interval of the difference.
      p_worse: against "at most `margin` worse", one-sided; small if the variant is worse.
      p_par: against "worse by `margin` or more", one-sided; small if the variant is on par.
      margin: what a team would still accept.
      n: examples.
    """

    difference: float
    low: float
    high: float
    p_worse: float
    p_par: float
    margin: float
    n: int

    def verdict(self, *, p_worse: float | None = None, p_par: float | None = None) -> str:
        """Returns "on par", "worse" or "undecided".

        Args:
          p_worse, p_par: p-values adjusted for several comparisons, in place of the raw ones.
        """
        alpha = (1 - LEVEL) / 2
        if (self.p_par if p_par is None else p_par) <= alpha:
            return "on par"
        if (self.p_worse if p_worse is None else p_worse) <= alpha:
            return "worse"
        return "undecided"

    def deciding_n(self, comparisons: int = 1) -> int | None:
        """Returns how many examples would decide if the difference stayed as it is.

        The interval narrows with the square root of n until it clears the margin. None if the
        difference lies on the margin itself, or is not defined.

        Args:
          comparisons: by how many the p-value is multiplied; the interval is widened to the level
            that leaves, as a normal one would be.
        """
        distance = self.difference + self.margin
        reach = self.difference - self.low if distance > 0 else self.high - self.difference
        if distance == 0 or not math.isfinite(reach):
            return None
        tail = (1 - LEVEL) / 2
        normal = statistics.NormalDist()
        widened = normal.inv_cdf(tail / comparisons) / normal.inv_cdf(tail)
        return math.ceil(self.n * (widened * reach / distance) ** 2)


def compare(difference: float, replicates: np.ndarray, *, margin: float, n: int) -> Comparison:
    """Compares by the replicates [samples] of a difference of scores.

    Where the difference is not defined (NaN), or of fewer than `FEWEST` examples, neither verdict
    is reached.
    """
    low, high = interval(replicates)
    if not math.isfinite(difference) or n < FEWEST:
        return Comparison(difference, low, high, p_worse=1.0, p_par=1.0, margin=margin, n=n)
    replicates = replicates[np.isfinite(replicates)]
    below = np.count_nonzero(replicates < -margin)
    ties = np.count_nonzero(replicates == -margin)
    total = len(replicates) + 1
    return Comparison(
        difference,
        low,
        high,
        p_worse=(len(replicates) - below + 1) / total,
        p_par=(below + ties + 1) / total,
        margin=margin,
        n=n,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values of several comparisons so that a single false alarm among all is rare."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(
        1, np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1))
    )
    return adjusted.tolist()
