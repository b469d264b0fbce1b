"""What a merge will take: measured on one module of each signature, before all are done."""

import dataclasses
import math
import time

from langmerge_jax.merging.engine import Merge

# What a process with jax holds before it merges anything, measured on Linux x86-64.
_PROCESS_BYTES = 400_000_000


@dataclasses.dataclass(frozen=True)
class Share:
    """The modules of one signature.

    Attributes:
        modules: How many.
        example: The path of one.
        shape: `(out, in)`.
        ranks: Of the adapters.
        rank: The highest rank that one of the result can have; None where it is full rank.
        seconds: Measured for one, compiled.
    """

    modules: int
    example: str
    shape: tuple[int, int]
    ranks: tuple[int, ...]
    rank: int | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a merge will take.

    Attributes:
        shares: By signature.
        compile_seconds: Until the first module of every signature was through, less its time.
        seconds: Of all modules, compiled; reading and writing files come on top.
        memory: Bytes held at the peak, without mapped files.
        written: Bytes of the adapter at most; None where the result is full rank.
    """

    shares: tuple[Share, ...]
    compile_seconds: float
    seconds: float
    memory: int
    written: int | None


def plan(ready: Merge) -> Plan:
    """Merges one module of each signature twice, and tells what all of them will take.

    A trim over all modules has to find its thresholds first, which is most of the work.
    """
    shares, compiling, written = [], 0.0, 0
    for alike in ready.alike():
        path = alike[-1]
        first, second = (_timed(ready, path) for _ in range(2))
        compiling += max(0.0, first - second)
        stack = ready.stacks[path]
        shape = (stack[0].out_features, stack[0].in_features)
        rank = None if ready.recipe.full_rank else ready.rank_bound(path)
        written += len(alike) * (rank or 0) * sum(shape) * ready.dtype.itemsize
        ranks = tuple(factors.rank for factors in stack)
        shares.append(Share(len(alike), path, shape, ranks, rank, second))
    # Two batches are in flight, and a full-rank one is held once more while it is used.
    largest = max(ready.coordinate_bytes(path) for path in ready.stacks)
    dense = max(math.prod(share.shape) for share in shares) * 4 if ready.recipe.full_rank else 0
    return Plan(
        shares=tuple(shares),
        compile_seconds=compiling,
        seconds=sum(share.modules * share.seconds for share in shares),
        memory=_PROCESS_BYTES + 2 * largest + dense,
        written=None if ready.recipe.full_rank else written,
    )


def _timed(ready: Merge, path: str) -> float:
    start = time.perf_counter()
    if ready.recipe.full_rank:
        ready.deltas().delta(path)
    else:
        dict(ready.factors([path]))
    return time.perf_counter() - start
