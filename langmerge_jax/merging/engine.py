"""The merge itself: project, sparsify, combine and lift, module by module.

Each step is a compiled program of its own, not one program for all of them. A step is then the
same machine code in every recipe that shares it: recipes that are equal on paper (`ties@1` and
`dare_ties@1`) are equal bit for bit, and another density, seed or weight compiles nothing.

Modules of one signature run through one program one by one, dispatched ahead of their use. So
memory is bounded by two modules whatever the model, where stacking the modules of a signature
would need all their coordinates between the steps, and the modules of a real model fill a device
each on its own.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from langmerge_jax.adapters import Adapter, Factors, check_same_base
from langmerge_jax.errors import InputError
from langmerge_jax.merging.consensus import CONSENSUS
from langmerge_jax.merging.dense import DenseDelta, computed_ahead
from langmerge_jax.merging.recipe import CONCATENATION, Recipe, parse
from langmerge_jax.merging.spaces import SPACES, Coordinates, Stack
from langmerge_jax.merging.sparsify import SPARSIFIERS, Draw, key_words

# The elementwise steps see flat coordinates, and those of small modules padded with zeros to one
# common length: in a tiny model, compiling for each shape would cost more than all the merging.
_MIN_ENTRIES = 2**15
_COUNTS_LENGTH = 2**9  # The same, for the table of counts.
# Counts and positions of entries are int32 on the device.
_MAX_ENTRIES = 2**31 - 2**8


def merge(
    adapters: Mapping[str, Adapter],
    recipe: Recipe | str,
    *,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    check_base_name: bool = True,
) -> Adapter | DenseDelta:
    """Merges adapters of one base model, without data and without the base model.

    Everything is computed in float32, or in float64 where jax has 64-bit types enabled, whatever
    the adapters' dtype. Adapters are taken in the order of their names.

    Args:
        adapters: Adapters by name. Ranks and scales may differ; modules and their shapes may not.
        recipe: A recipe, or its name (see `parse`).
        weights: A weight for every adapter, 1 if not given. For `ties` relative importance:
            positive, and the same when all are doubled. For sums and PEFT's rules a gain of
            either sign.
        seed: Of random masks, any integer.
        check_base_name: Whether the adapters' base models must have the same name.

    Returns:
        An adapter where the space keeps low rank, in the widest dtype of the adapters; else a
        `DenseDelta`.

    Raises:
        InputError: If the adapters do not belong together, or a weight is senseless.
    """
    recipe = parse(recipe) if isinstance(recipe, str) else recipe
    if not adapters:
        raise InputError("no adapters to merge; give one at least")
    check_same_base(adapters, check_base_name=check_base_name)
    adapters = {name: adapters[name] for name in sorted(adapters)}
    shares = _shares(weights, list(adapters), recipe)
    stacks = {
        path: [adapter.modules[path] for adapter in adapters.values()]
        for path in next(iter(adapters.values())).modules
    }
    widest = _widest_dtype(adapters)
    if recipe.space == CONCATENATION:
        gains = recipe.lam * shares
        merged = {path: _concatenate(stack, gains, widest) for path, stack in stacks.items()}
        return _adapter(merged, adapters)
    for path, stack in stacks.items():
        _check_module(path, stack, list(adapters), recipe)
    if recipe.space == "factor" and len(adapters) == 1:
        # PEFT turns every type into `linear` when there is one adapter.
        recipe = Recipe("factor", "none", "sum", lam=recipe.lam)

    def combined(path: str) -> tuple[list[jax.Array], tuple[jax.Array, ...]]:
        return _combined(path, stacks[path], list(adapters), recipe, shares, seed)

    lift = SPACES[recipe.space].lift
    if lift is None:
        return DenseDelta(
            {path: (stack[0].out_features, stack[0].in_features) for path, stack in stacks.items()},
            lambda path: combined(path)[0][0],
            base=_common(adapter.base for adapter in adapters.values()),
        )
    merged = {}
    for path, (parts, frame) in computed_ahead(stacks, combined):
        shapes = _part_shapes(recipe.space, _signature(stacks[path]), _compute_dtype())
        shaped = [
            np.asarray(part)[: math.prod(shape)].reshape(shape)
            for part, shape in zip(parts, shapes, strict=True)
        ]
        a, b = lift(shaped, [np.asarray(x) for x in frame])
        merged[path] = Factors(a.astype(widest), b.astype(widest), scale=1.0)
    return _adapter(merged, adapters)


def _combined(
    path: str,
    stack: Sequence[Factors],
    names: Sequence[str],
    recipe: Recipe,
    shares: np.ndarray,
    seed: int,
) -> tuple[list[jax.Array], tuple[jax.Array, ...]]:
    """One module's combined parts, flat and padded, and its frame; dispatched to the device."""
    space, sparsifier = SPACES[recipe.space], SPARSIFIERS[recipe.sparsify]
    dtype = _compute_dtype()
    scales = np.array([factors.scale for factors in stack])
    coordinates = _project(
        Stack(
            a=tuple(factors.a.astype(dtype) for factors in stack),
            b=tuple(factors.b.astype(dtype) for factors in stack),
            scale=scales.astype(dtype),
        ),
        project=space.project,
    )
    shapes = _part_shapes(recipe.space, _signature(stack), dtype)
    weights = space.weights(shares, scales)
    parts = []
    for index, x in enumerate(coordinates.parts):
        if sparsifier is not None:
            x = _sparsify(
                x,
                coordinates.live[index],
                _counts(recipe.density, *shapes[index]),
                dtype(recipe.density),
                np.stack([key_words(seed, name, path, index) for name in names]),
                sparsifier=sparsifier,
            )
        gain = recipe.lam if index == len(shapes) - 1 else 1.0
        combine = CONSENSUS[recipe.consensus].combine
        parts.append(_combine(x, weights[index].astype(dtype), dtype(gain), combine=combine))
    return parts, coordinates.frame


def _counts(density: float, rows: int, columns: int) -> np.ndarray:
    """`int(density * N)` for N = columns times 0, 1, ... rows, and on to a common length.

    On the host in float64: the device's float32 would round it.
    """
    length = -(-(rows + 1) // _COUNTS_LENGTH) * _COUNTS_LENGTH
    entries = np.minimum(np.arange(length, dtype=np.int64), rows) * columns
    return (density * entries).astype(np.int32)


@functools.partial(jax.jit, static_argnames="project")
def _project(stack: Stack, *, project: Callable[[Stack], Coordinates]) -> Coordinates:
    """Coordinates with their parts flat, `[n, rows * columns]` and padded to `_MIN_ENTRIES`."""
    coordinates = project(stack)
    flat = [x.reshape(x.shape[0], -1) for x in coordinates.parts]
    padded = [jnp.pad(x, ((0, 0), (0, max(0, _MIN_ENTRIES - x.shape[1])))) for x in flat]
    return coordinates._replace(parts=tuple(padded))


@functools.partial(jax.jit, static_argnames="sparsifier", donate_argnums=0)
def _sparsify(
    x: jax.Array,  # [n, N]
    live: jax.Array,
    counts: jax.Array,  # entries to keep, by live rows
    density: jax.Array,
    words: jax.Array,  # [n, 2]
    *,
    sparsifier: Callable[[jax.Array, Draw], jax.Array],
) -> jax.Array:
    return sparsifier(x, Draw(density, counts[live], words))


@functools.partial(jax.jit, static_argnames="combine")
def _combine(
    x: jax.Array,  # [n, N]
    weights: jax.Array,  # [n]
    gain: jax.Array,
    *,
    combine: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    return gain * combine(x, weights)


Signature = tuple[int, int, tuple[int, ...]]  # out, in and the rank of each adapter


def _signature(stack: Sequence[Factors]) -> Signature:
    return stack[0].out_features, stack[0].in_features, tuple(factors.rank for factors in stack)


@functools.lru_cache
def _part_shapes(space: str, signature: Signature, dtype: type) -> tuple[tuple[int, int], ...]:
    """`(rows, columns)` of each coordinate array of one adapter, by tracing the projection."""
    out_features, in_features, ranks = signature
    stack = Stack(
        a=tuple(jax.ShapeDtypeStruct((rank, in_features), dtype) for rank in ranks),
        b=tuple(jax.ShapeDtypeStruct((out_features, rank), dtype) for rank in ranks),
        scale=jax.ShapeDtypeStruct((len(ranks),), dtype),
    )
    return tuple(x.shape[1:] for x in jax.eval_shape(SPACES[space].project, stack).parts)


def _check_module(
    path: str, stack: Sequence[Factors], names: Sequence[str], recipe: Recipe
) -> None:
    out_features, in_features, ranks = _signature(stack)
    if SPACES[recipe.space].equal_ranks and len(set(ranks)) > 1:
        by_name = ", ".join(f"{name!r} {rank}" for name, rank in zip(names, ranks, strict=True))
        raise InputError(
            f"{path}: ranks differ ({by_name}); {recipe.name!r} combines A and B entry by entry "
            "and needs one rank: use `linear` or a recipe with knots"
        )
    shapes = _part_shapes(recipe.space, _signature(stack), _compute_dtype())
    largest = max(math.prod(shape) for shape in shapes)
    if largest > _MAX_ENTRIES:
        raise InputError(
            f"{path}: {out_features} x {in_features} has {largest} entries in space "
            f"{recipe.space!r}, at most {_MAX_ENTRIES} can be counted; use `linear`"
        )


def _concatenate(stack: Sequence[Factors], gains: np.ndarray, widest: np.dtype) -> Factors:
    """The exact sum of gain-weighted deltas: A's stacked over B's side by side.

    The largest gain becomes the scale, so that factors of equal gain are copied bit for bit in any
    dtype; PEFT's `cat` multiplies every A by its gain instead.
    """
    dtype = _compute_dtype()
    gains = gains * [factors.scale for factors in stack]
    scale = gains[np.argmax(np.abs(gains))] or 1.0
    scaled_b = [f.b.astype(dtype) * dtype(g / scale) for f, g in zip(stack, gains, strict=True)]
    a = np.concatenate([factors.a.astype(widest) for factors in stack], axis=0)
    return Factors(a, np.concatenate(scaled_b, axis=1).astype(widest), scale)


def _widest_dtype(adapters: Mapping[str, Adapter]) -> np.dtype:
    """The narrowest float dtype that holds every factor."""
    modules = [factors for one in adapters.values() for factors in one.modules.values()]
    return functools.reduce(jnp.promote_types, {x.dtype for f in modules for x in (f.a, f.b)})


def _adapter(modules: dict[str, Factors], sources: Mapping[str, Adapter]) -> Adapter:
    return Adapter(
        modules,
        base=_common(adapter.base for adapter in sources.values()),
        revision=_common(adapter.revision for adapter in sources.values()),
        task_type=_common(adapter.task_type for adapter in sources.values()),
    )


def _shares(
    weights: Mapping[str, float] | None, names: Sequence[str], recipe: Recipe
) -> np.ndarray:
    """The weights in the order of `names`, float64; relative ones with 1 as the largest."""
    weights = dict.fromkeys(names, 1.0) if weights is None else weights
    for name in sorted(weights.keys() ^ set(names)):
        fault = "no adapter of that name" if name in weights else "no weight for that adapter"
        raise InputError(f"weights: {name!r}: {fault}; give one weight each for {', '.join(names)}")
    relative = CONSENSUS[recipe.consensus].relative
    for name in names:
        if not math.isfinite(weights[name]):
            raise InputError(f"weights: {name!r} has {weights[name]}; give a finite number")
        if relative and weights[name] <= 0:
            raise InputError(
                f"weights: {name!r} has {weights[name]}; {recipe.name!r} takes weights as relative "
                "importance, which is positive: leave the adapter out, or use `linear` to subtract"
            )
    shares = np.array([weights[name] for name in names], np.float64)
    return shares / shares.max() if relative else shares


def _compute_dtype() -> type[np.floating]:
    return np.float64 if jax.config.jax_enable_x64 else np.float32


def _common(values: Iterable[str | None]) -> str | None:
    """The first that says something; two names that passed the checks mean one thing."""
    return next((value for value in values if value), None)
