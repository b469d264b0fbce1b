"""The compiled steps of a merge: project, combine, lift; each a program of its own.

A step sees modules of one signature, `[m, ...]`, and is one program a signature: recipes that share
a step share its machine code, and another density, seed or weight compiles nothing. With a mesh,
each device has its own of the m modules; a module is never divided, so a device count changes no
result.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from langmerge_jax.merging import lapack
from langmerge_jax.merging.consensus import CONSENSUS, Vote, totals
from langmerge_jax.merging.spaces import SPACES, Coordinates, Stack
from langmerge_jax.merging.sparsify import SPARSIFIERS, Draw, Parts, variance_over_adapters

# The coordinates of small modules are padded with zeros to this shape at least: in a tiny model,
# compiling for each shape would cost more than all the merging.
_SMALL = (128, 256)

AXIS = "modules"


class Method(NamedTuple):
    """What of a recipe decides the machine code of the elementwise step."""

    sparsify: str
    consensus: str
    vote: Vote
    rescale: str


class Numbers(NamedTuple):
    """What an elementwise step takes beside coordinates and method, one of each a module.

    Attributes:
        density, gain, zero_sign, epsilon: `[m]`; gain is lambda, epsilon DELLA's.
        entries: `[m]`, how many coordinates of an adapter are no padding.
        columns, count, outliers: `[m]` int32: columns that are no padding, entries to keep, and the
            largest entries that Breadcrumbs drops.
        words: `[m, n, 2]` uint32.
        weights: `[m, n]`.
        thresholds: None, or `[m, n]` bit patterns found over all modules.
        room: None, or `[m, n]` int32, how many that equal them are kept.
    """

    density: Any
    gain: Any
    zero_sign: Any
    epsilon: Any
    entries: Any
    columns: Any
    count: Any
    outliers: Any
    words: Any
    weights: Any
    thresholds: Any = None
    room: Any = None


def padded(shape: tuple[int, int]) -> tuple[int, int]:
    """The shape to which the coordinates `(rows, columns)` of one adapter are padded."""
    if math.prod(shape) >= math.prod(_SMALL):
        return shape
    return max(shape[0], _SMALL[0]), max(shape[1], _SMALL[1])


def part_shapes(space: str, stack: Stack) -> tuple[tuple[int, int], ...]:
    """`(rows, columns)` of each coordinate array of one adapter, by tracing the projection."""
    return tuple(x.shape[1:] for x in jax.eval_shape(SPACES[space].project, stack).parts)


def project(stack: Stack, *, space: str, dtype: Any, mesh: Mesh | None) -> Coordinates:
    """Coordinates of m modules, `[m, n, rows, columns]`, padded to `padded`.

    Args:
        stack: Factors `[m, ...]` in any float dtype.
        space: A name of `SPACES`.
        dtype: Of the result, and of the computation where the space is not `precise`. A TPU has no
            float64, and computes in float32.
        mesh: One axis, `AXIS`, over which the modules are spread; None for one device.
    """
    wide = jax.default_backend() != "tpu"
    if not SPACES[space].precise:
        return _project(stack, space=space, inner=dtype, dtype=dtype, mesh=mesh)
    inner = np.dtype(np.float64) if wide else dtype
    with jax.enable_x64(wide or jax.config.jax_enable_x64), lapack.one_thread():
        found = _project(stack, space=space, inner=inner, dtype=dtype, mesh=mesh)
        return jax.block_until_ready(found)


@functools.partial(jax.jit, static_argnames=("space", "inner", "dtype", "mesh"))
def _project(stack: Stack, *, space: str, inner: Any, dtype: Any, mesh: Mesh | None) -> Coordinates:
    def one(stack: Stack) -> Coordinates:
        found = SPACES[space].project(jax.tree.map(lambda x: x.astype(inner), stack))
        return found._replace(
            parts=tuple(_pad(x.astype(dtype)) for x in found.parts),
            frame=tuple(x.astype(dtype) for x in found.frame),
        )

    return _spread(one, mesh)(stack)


def _pad(x: jax.Array) -> jax.Array:
    rows, columns = padded(x.shape[1:])
    return jnp.pad(x, ((0, 0), (0, rows - x.shape[1]), (0, columns - x.shape[2])))


@functools.partial(jax.jit, static_argnames="mesh")
def varying(x: jax.Array, *, mesh: Mesh | None) -> jax.Array:
    """How many entries of each of m modules `[m, n, ...]` differ between adapters, int32 `[m]`."""
    return _spread(lambda v: jnp.count_nonzero(variance_over_adapters(v)).astype(jnp.int32), mesh)(
        x
    )


@functools.partial(jax.jit, static_argnames=("method", "mesh"))
def combine(x: jax.Array, numbers: Numbers, *, method: Method, mesh: Mesh | None) -> jax.Array:
    """The merged coordinates `[m, rows, columns]` of m modules `[m, n, rows, columns]`."""

    def one(x: jax.Array, numbers: Numbers) -> jax.Array:
        kept = _sparsified(x, numbers, method)
        consensus = CONSENSUS[method.consensus]
        known = {
            "vote": method.vote,
            "zero_sign": numbers.zero_sign,
            "entries": numbers.entries,
        }
        needed = {name: known[name] for name in consensus.needs}
        return numbers.gain * consensus.combine(kept, numbers.weights, **needed)

    return _spread(one, mesh)(x, numbers)


@functools.partial(jax.jit, static_argnames=("method", "mesh"))
def signs(x: jax.Array, numbers: Numbers, *, method: Method, mesh: Mesh | None) -> jax.Array:
    """The sum of the elected signs of m modules, int32 `[m]`."""

    def one(x: jax.Array, numbers: Numbers) -> jax.Array:
        total = totals(_sparsified(x, numbers, method), numbers.weights, method.vote)
        return jnp.sum(jnp.sign(total).astype(jnp.int32))

    return _spread(one, mesh)(x, numbers)


def _sparsified(x: jax.Array, numbers: Numbers, method: Method) -> Parts:
    sparsifier = SPARSIFIERS[method.sparsify]
    if sparsifier is None:
        return x
    given = None if numbers.thresholds is None else (numbers.thresholds, numbers.room)
    draw = Draw(
        density=numbers.density,
        count=numbers.count,
        key_words=numbers.words,
        columns=numbers.columns,
        epsilon=numbers.epsilon,
        outliers=numbers.outliers,
        rescale=method.rescale,
        given=given,
    )
    return sparsifier(x, draw)


class Lifted(NamedTuple):
    """m modules out of their space.

    Attributes:
        a: `[m, k, i]`; None for a dense delta.
        b: `[m, o, k]`, or the dense delta `[m, o, i]`.
        alive: `[m, k]`, whether a row of `a` is not all zero; None for a dense delta.
    """

    a: jax.Array | None
    b: jax.Array
    alive: jax.Array | None


@functools.partial(jax.jit, static_argnames=("space", "shapes", "dtype", "mesh"))
def lift(
    parts: Sequence[jax.Array],
    frame: Sequence[jax.Array],
    *,
    space: str,
    shapes: tuple[tuple[int, int], ...],
    dtype: Any,
    mesh: Mesh | None,
) -> Lifted:
    """The combined coordinates as factors of scale 1, or as the delta, in `dtype`."""

    def one(parts: Sequence[jax.Array], frame: Sequence[jax.Array]) -> Lifted:
        real = [x[:rows, :columns] for x, (rows, columns) in zip(parts, shapes, strict=True)]
        to_factors = SPACES[space].lift
        if to_factors is None:
            return Lifted(None, real[0].astype(dtype), None)
        a, b = to_factors(real, frame)
        return Lifted(a.astype(dtype), b.astype(dtype), jnp.any(a != 0, axis=1))

    return _spread(one, mesh)(tuple(parts), tuple(frame))


def _spread(one: Callable, mesh: Mesh | None) -> Callable:
    """A function of m modules, every array `[m, ...]`, from a function of one."""

    def run(*arguments):
        if all(x.shape[0] == 1 for x in jax.tree.leaves(arguments)):
            # Without the leading axis, products and factorizations are the plain ones.
            return jax.tree.map(lambda x: x[None], one(*jax.tree.map(lambda x: x[0], arguments)))
        return jax.vmap(one)(*arguments)

    if mesh is None:
        return run
    spec = PartitionSpec(AXIS)
    return jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
