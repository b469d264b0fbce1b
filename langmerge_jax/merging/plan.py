"""What a merge will take: measured on one module of each signature, before all are done."""

import dataclasses
import math
import time

from langmerge_jax.merging.engine import Merge

# What a process with jax holds before it merges anything, measured on Linux x86-64.
_PROCESS_BYTES = 400_000_000
# What a sparsifier needs beside its module's coordinates, as a multiple of them: random numbers,
# sorted copies.
_WORK = {"dare": 1.0, "della": 4.0}


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
        seconds: Of all modules and passes, compiled; reading and writing files come on top.
        passes: How often the modules are gone through.
        memory: Bytes held at the peak, without mapped files.
        written: Bytes of the adapter at most; None where the result is full rank.
    """

    shares: tuple[Share, ...]
    compile_seconds: float
    seconds: float
    passes: int
    memory: int
    written: int | None


def plan(ready: Merge, *, folded: bool = False) -> Plan:
    """Merges one module of each signature twice, and tells what all of them will take.

    Args:
        ready: The merge.
        folded: Whether it is folded into a base, so that no adapter is written.
    """
    sample, full = ready.by_module(), folded or ready.recipe.full_rank
    shares, compiling, written, memory = [], 0.0, 0, 0
    for alike in ready.alike():
        path = alike[-1]
        first, second = (_timed(sample, path, full) for _ in range(2))
        compiling += max(0.0, first - second)
        stack = ready.stacks[path]
        shape = (stack[0].out_features, stack[0].in_features)
        rank = None if full else ready.rank_bound(path)
        written += len(alike) * (rank or 0) * sum(shape) * ready.dtype.itemsize
        ranks = tuple(factors.rank for factors in stack)
        shares.append(Share(len(alike), path, shape, ranks, rank, second))
        # Two batches are in flight, one of them at work, and a full delta is held while it is used.
        coordinates = ready.coordinate_bytes(path)
        work = _WORK.get(ready.recipe.sparsify, 0.0) * coordinates
        memory = max(memory, 2 * coordinates + int(work) + full * 4 * math.prod(shape))
    written += sum(head.nbytes for head in ready.heads.values())
    return Plan(
        shares=tuple(shares),
        compile_seconds=compiling,
        seconds=ready.passes * sum(share.modules * share.seconds for share in shares),
        passes=ready.passes,
        memory=_PROCESS_BYTES + memory + 2 * sum(head.nbytes for head in ready.heads.values()),
        written=None if full else written,
    )


def _timed(ready: Merge, path: str, full: bool) -> float:
    start = time.perf_counter()
    if full:
        ready.deltas().delta(path)
    else:
        dict(ready.factors([path]))
    return time.perf_counter() - start
