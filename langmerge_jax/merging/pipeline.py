"""The stream of modules through the compiled steps, with what each step takes beside coordinates.

Modules go through the steps of `kernels` one by one, or as many at once as there are devices,
dispatched ahead of their use. So memory is bounded by the coordinates of two such batches whatever
the model.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from langmerge_jax.adapters import Factors
from langmerge_jax.merging import kernels, scope
from langmerge_jax.merging.recipe import Recipe
from langmerge_jax.merging.spaces import SPACES, Stack
from langmerge_jax.merging.sparsify import key_words
from langmerge_jax.merging.stacks import (
    Signature,
    Stacks,
    alike,
    compute_dtype,
    scales,
    signature,
)
from langmerge_jax.progress import Progress


class Pipeline:
    """Merges modules in the coordinates of a recipe's space.

    Args:
        recipe: In a space of `SPACES`.
        names: The n adapters, in the order of the stacks.
        stacks: Their factors by module.
        weights: From a module to the adapters' weights, float64 `[n]`.
        seed: Of random masks.
        mesh: Of one axis `kernels.AXIS`; None for one device.
    """

    def __init__(
        self,
        recipe: Recipe,
        names: Sequence[str],
        stacks: Stacks,
        weights: Callable[[str], np.ndarray],
        seed: int,
        mesh: Mesh | None,
    ):
        self._recipe, self._space = recipe, SPACES[recipe.space]
        self._names, self._stacks, self._weights = list(names), stacks, weights
        self._seed, self._mesh = seed, mesh
        # At density 1 no sparsifier drops anything, so all of them are one program.
        drops = recipe.density not in (None, 1)
        self._method = kernels.Method(
            recipe.sparsify if drops else "none",
            recipe.consensus,
            recipe.vote,
            recipe.rescale if drops else "inverse",
        )

    def merged(
        self, paths: Sequence[str], dtype: np.dtype, *, in_order: bool = False
    ) -> Iterator[tuple[list[str], kernels.Lifted]]:
        """Batches of modules and their merges, the next of which is dispatched already.

        Args:
            paths: The modules wanted.
            dtype: Of the result.
            in_order: Whether they must come in this order: then one by one, on one device.
        """
        mesh = None if in_order else self._mesh
        results = self._results(paths, mesh, dtype)
        previous = next(results, None)
        while previous is not None:
            following = next(results, None)
            yield previous
            previous = following

    @property
    def passes(self) -> int:
        """How often the modules are gone through, with the passes before the merge itself."""
        surveys = 0
        if self._method.sparsify != "none" and self._recipe.scope == "global":
            surveys += scope.passes(compute_dtype(), self._method.sparsify == "magnitude_official")
        if self._recipe.zero_sign == "majority":
            surveys += 1
        return 1 + surveys

    def part_shapes(self, path: str) -> tuple[tuple[int, int], ...]:
        """`(rows, columns)` of each coordinate array of one adapter in a module."""
        return _part_shapes(self._recipe.space, signature(self._stacks[path]), compute_dtype())

    def coordinate_bytes(self, path: str) -> int:
        """The bytes that the coordinates of one module take, with those of its merge."""
        shapes = [kernels.padded(shape) for shape in self.part_shapes(path)]
        entries = sum(math.prod(shape) for shape in shapes)
        return (len(self._names) + 1) * entries * compute_dtype().itemsize

    @functools.cached_property
    def _thresholds(self) -> scope.Thresholds | None:
        """The trim over all modules, where the recipe has one."""
        if self._method.sparsify == "none" or self._recipe.scope == "module":
            return None
        official = self._method.sparsify == "magnitude_official"
        return scope.thresholds(self._pieces, self._recipe.density, official)

    @functools.cached_property
    def _zero_sign(self) -> float:
        """The sign elected where a sum is zero, 1 or -1."""
        if self._recipe.zero_sign == "plus":
            return 1.0
        total = 0
        for piece in self._pieces():
            numbers = self._numbers(piece.modules, piece.x, piece.entries, 0, self._mesh, 1.0)
            found = kernels.signs(piece.x, numbers, method=self._method, mesh=self._mesh)
            total += int(np.asarray(found)[: len(piece.modules)].astype(np.int64).sum())
        return 1.0 if total > 0 else -1.0

    def _pieces(self) -> Iterator[scope.Piece]:
        """A pass over all modules, before any is merged."""
        with Progress("survey", len(self._stacks), "module") as progress:
            for batch, coordinates in self._projected(list(self._stacks), self._mesh):
                columns = self.part_shapes(batch[0])[0][1]
                entries = np.asarray(coordinates.live[0]).astype(np.int64) * columns
                yield scope.Piece(batch, coordinates.parts[0], entries)
                progress.update(len(batch))

    def _results(
        self, paths: Sequence[str], mesh: Mesh | None, dtype: np.dtype
    ) -> Iterator[tuple[list[str], kernels.Lifted]]:
        for batch, coordinates in self._projected(paths, mesh):
            shapes = self.part_shapes(batch[0])
            merged = []
            for part, (x, live, shape) in enumerate(
                zip(coordinates.parts, coordinates.live, shapes, strict=True)
            ):
                entries = np.asarray(live).astype(np.int64) * shape[1]
                numbers = self._numbers(batch, x, entries, part, mesh, self._zero_sign)
                merged.append(kernels.combine(x, numbers, method=self._method, mesh=mesh))
            yield (
                batch,
                kernels.lift(
                    merged,
                    coordinates.frame,
                    space=self._recipe.space,
                    shapes=shapes,
                    dtype=dtype,
                    mesh=mesh,
                ),
            )

    def _projected(
        self, paths: Sequence[str], mesh: Mesh | None
    ) -> Iterator[tuple[list[str], kernels.Coordinates]]:
        """Batches of modules of one signature, as many as devices, and their coordinates."""
        width = mesh.size if mesh else 1
        batches = [[path] for path in paths]
        if width > 1:
            batches = [
                group[start : start + width]
                for group in alike(self._stacks, paths)
                for start in range(0, len(group), width)
            ]
        for batch in batches:
            # Every device gets a module: in a last, smaller batch some of them twice.
            filled = [*batch, *itertools.repeat(batch[-1], width - len(batch))]
            yield (
                batch,
                kernels.project(
                    self._stack([self._stacks[path] for path in filled]),
                    space=self._recipe.space,
                    dtype=compute_dtype(),
                    mesh=mesh,
                ),
            )

    def _stack(self, modules: Sequence[Sequence[Factors]]) -> Stack:
        """Factors of alike modules, `[m, ...]`, as they are stored."""

        def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
            return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)

        scale = [[f.scale for f in stack] for stack in modules]
        return Stack(
            a=tuple(joined([f.a for f in factors]) for factors in zip(*modules, strict=True)),
            b=tuple(joined([f.b for f in factors]) for factors in zip(*modules, strict=True)),
            scale=np.array(scale, np.float64),
        )

    def _numbers(
        self,
        batch: Sequence[str],
        x: jax.Array,
        entries: np.ndarray,
        part: int,
        mesh: Mesh | None,
        zero_sign: float,
    ) -> kernels.Numbers:
        """What the elementwise step of one coordinate array of a batch takes.

        Args:
            batch: Module paths.
            x: `[m, n, rows, columns]`; what is beyond the batch repeats its last module.
            entries: `[m]` int64, how many of each count for a density.
            part: Which of the space's coordinate arrays.
            mesh: That `x` lies on.
            zero_sign: Elected where a sum is zero.
        """
        recipe, dtype, m = self._recipe, compute_dtype(), x.shape[0]
        modules = [*batch, *itertools.repeat(batch[-1], m - len(batch))]
        stacks = [self._stacks[path] for path in modules]
        shapes = self.part_shapes(batch[0])
        if self._method.sparsify == "sce":
            entries = np.asarray(kernels.varying(x, mesh=mesh)).astype(np.int64)
        density = 1.0 if recipe.density is None else recipe.density
        # On the host in float64: the device's float32 would round it.
        count = np.array([int(density * n) for n in entries.tolist()])
        outliers = np.array([int(recipe.gamma * n) for n in entries.tolist()])
        weights = [
            self._space.weights(self._weights(path), scales(stack))[part]
            for path, stack in zip(modules, stacks, strict=True)
        ]
        words = [[key_words(self._seed, name, p, part) for name in self._names] for p in modules]
        over_all = self._thresholds
        return kernels.Numbers(
            density=np.full(m, density, dtype),
            # lambda enters once, with the last of the arrays.
            gain=np.full(m, recipe.lam if part == len(shapes) - 1 else 1.0, dtype),
            zero_sign=np.full(m, zero_sign, dtype),
            epsilon=np.full(m, recipe.epsilon, dtype),
            entries=np.full(m, math.prod(shapes[part]), dtype),
            columns=np.full(m, shapes[part][1], np.int32),
            count=count.astype(np.int32),
            outliers=np.minimum(outliers, entries - count).astype(np.int32),
            words=np.array(words),
            weights=np.array(weights, dtype),
            thresholds=over_all and np.tile(over_all.bits, (m, 1)),
            room=over_all and np.array([over_all.room[path] for path in modules]),
        )


@functools.lru_cache
def _part_shapes(space: str, of_module: Signature, dtype: np.dtype) -> tuple[tuple[int, int], ...]:
    out_features, in_features, ranks, _ = of_module
    stack = Stack(
        a=tuple(jax.ShapeDtypeStruct((rank, in_features), dtype) for rank in ranks),
        b=tuple(jax.ShapeDtypeStruct((out_features, rank), dtype) for rank in ranks),
        scale=jax.ShapeDtypeStruct((len(ranks),), dtype),
    )
    return kernels.part_shapes(space, stack)
