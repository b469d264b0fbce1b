"""Merges: the checks of what goes in, and the streams of modules that come out."""

import copy
import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from langmerge_jax.adapters import Adapter, Factors, check_same_base, common_base
from langmerge_jax.errors import InputError
from langmerge_jax.merging import kernels
from langmerge_jax.merging.dense import DenseDelta
from langmerge_jax.merging.heads import merged_heads
from langmerge_jax.merging.pipeline import Pipeline
from langmerge_jax.merging.recipe import CONCATENATION, Recipe, parse
from langmerge_jax.merging.spaces import SPACES
from langmerge_jax.merging.stacks import (
    alike,
    compute_dtype,
    concatenated,
    stacked,
    widest_dtype,
)
from langmerge_jax.merging.truncate import Truncation
from langmerge_jax.merging.weights import Weight, Weights

logger = logging.getLogger(__name__)

# Positions of entries are int32 on the device.
_MAX_ENTRIES = 2**31 - 2**8


def merge(
    adapters: Mapping[str, Adapter],
    recipe: Recipe | str,
    *,
    weights: Mapping[str, Weight | Mapping[str, Weight]] | None = None,
    seed: int = 0,
    missing: str = "refuse",
    heads: str = "refuse",
    allow_base_mismatch: bool = False,
    dtype: np.typing.DTypeLike | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Adapter | DenseDelta:
    """Merges adapters of one base model, without data and without the base model.

    Everything is computed in float32, or in float64 where jax has 64-bit types enabled, whatever
    the adapters' dtype. Adapters are taken in the order of their names.

    Args:
        adapters: Adapters by name. Ranks and scales may differ; shapes of modules may not.
        recipe: A recipe, or its name (see `parse`).
        weights: A weight for every adapter, 1 if not given: a number, two for the first and the
            last layer, or either by module pattern (see `Weights`). For TIES and means relative
            importance: not negative, and the same when all are doubled. For sums and PEFT's rules
            a gain of either sign.
        seed: Of random masks, any integer.
        missing: `refuse` or `zero`: what a module means that some adapters lack.
        heads: `refuse`, `average` (by the weights), or `from=<name>`: what becomes of fully trained
            modules.
        allow_base_mismatch: Whether the adapters' base models may have different names.
        dtype: Of the result; the widest of the adapters' by default.
        devices: To spread the modules over; all local ones by default.

    Returns:
        An adapter where the space keeps low rank or the recipe truncates, else a `DenseDelta`.

    Raises:
        InputError: If the adapters do not belong together, or a weight is senseless.
    """
    ready = Merge(
        adapters,
        recipe,
        weights=weights,
        seed=seed,
        missing=missing,
        heads=heads,
        allow_base_mismatch=allow_base_mismatch,
        dtype=dtype,
        devices=devices,
    )
    return ready.deltas() if ready.recipe.full_rank else ready.adapter(dict(ready.factors()))


class Merge:
    """A merge that is checked and ready, computed module by module when asked for.

    Args: see `merge`.

    Attributes:
        recipe: As it is computed.
        names: Of the adapters, in the order they are taken.
        given_weights: By adapter, as they were given.
        seed: Of random masks.
        choices: What `missing` and `heads` were.
        base, revision, task_type, fan_in_fan_out: As in `Adapter`, of the result.
        stacks: The adapters' factors by module, in natural order; absent ones are zeros.
        dtype: Of the result.
        heads: Fully trained tensors of the result.
        energy: After `factors` of a truncating recipe, the share of the energy that it kept.
    """

    def __init__(
        self,
        adapters: Mapping[str, Adapter],
        recipe: Recipe | str,
        *,
        weights: Mapping[str, Weight | Mapping[str, Weight]] | None = None,
        seed: int = 0,
        missing: str = "refuse",
        heads: str = "refuse",
        allow_base_mismatch: bool = False,
        dtype: np.typing.DTypeLike | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.recipe = parse(recipe) if isinstance(recipe, str) else recipe
        if not adapters:
            raise InputError("no adapters to merge; give one at least")
        if missing not in ("refuse", "zero"):
            raise InputError(f"missing: {missing!r} is neither 'refuse' nor 'zero'")
        check_same_base(
            adapters,
            allow_base_mismatch=allow_base_mismatch,
            allow_missing=missing == "zero",
        )
        self._adapters = {name: adapters[name] for name in sorted(adapters)}
        self.names = list(self._adapters)
        if len(self.names) == 1 and self.recipe.space == "factor":
            # So does PEFT, whatever the type.
            logger.info("of one adapter %s is peft/linear", self.recipe.name)
            plain = parse("peft/linear")
            self.recipe = dataclasses.replace(plain, lam=self.recipe.lam, rank=self.recipe.rank)
        if self.recipe.sparsify == "sce" and len(self.names) == 1:
            raise InputError(f"{self.recipe.name!r} keeps what varies, and needs two adapters")
        sums = self.recipe.space == CONCATENATION
        self._space = None if sums else SPACES[self.recipe.space]
        self.stacks = stacked(
            self._adapters,
            equal_ranks=self._space is not None and self._space.equal_ranks,
        )
        self.dtype = np.dtype(dtype or widest_dtype(self.stacks))
        self.given_weights = dict(weights or dict.fromkeys(self.names, 1.0))
        self.seed = seed
        sources = list(self._adapters.values())
        self.base = common_base(self._adapters)
        # A quantised copy of the base has revisions of its own.
        of_base = (adapter for adapter in sources if adapter.base == self.base)
        self.revision = _common(adapter.revision for adapter in of_base)
        self.task_type = _common(adapter.task_type for adapter in sources)
        self.fan_in_fan_out = sources[0].fan_in_fan_out
        self.choices = {"missing": missing, "heads": heads}
        averaged = {x for adapter in sources for x in adapter.heads if heads == "average"}
        self._weights = Weights(
            weights,
            self.names,
            [*self.stacks, *sorted(averaged)],
            self.recipe.relative,
            self.recipe.name,
        )
        self.heads = merged_heads(
            self._adapters, heads, self._weights.of, None if dtype is None else self.dtype
        )
        self._truncation: Truncation | None = None
        self._mesh = _mesh(devices)
        self._pipeline = self._made_pipeline()
        if self._pipeline is not None:
            for path, stack in self.stacks.items():
                self._check_module(path, stack)

    def by_module(self) -> "Merge":
        """The same merge with every module by itself, also where a trim ranks all of them."""
        twin = copy.copy(self)
        twin.recipe = dataclasses.replace(self.recipe, scope="module", zero_sign="plus")
        twin._pipeline = twin._made_pipeline()
        return twin

    @property
    def passes(self) -> int:
        """How often the modules are gone through."""
        return 1 if self._pipeline is None else self._pipeline.passes

    def _made_pipeline(self) -> Pipeline | None:
        if self._space is None:
            return None
        weights = self._weights.of
        return Pipeline(self.recipe, self.names, self.stacks, weights, self.seed, self._mesh)

    @property
    def energy(self) -> float | None:
        return self._truncation.energy if self._truncation else None

    def adapter(self, modules: dict[str, Factors]) -> Adapter:
        """The adapter that has these merged modules, and all else of the inputs."""
        return Adapter(
            modules,
            base=self.base,
            revision=self.revision,
            task_type=self.task_type,
            heads=self.heads,
            fan_in_fan_out=self.fan_in_fan_out,
        )

    def deltas(self) -> DenseDelta:
        """The result as full-rank deltas, to be folded into a base."""
        return DenseDelta(
            {p: (stack[0].out_features, stack[0].in_features) for p, stack in self.stacks.items()},
            self._deltas,
            base=self.base,
            embeddings=[path for path, stack in self.stacks.items() if stack[0].embedding],
            heads=self.heads,
            revision=self.revision,
            task_type=self.task_type,
            fan_in_fan_out=self.fan_in_fan_out,
        )

    def factors(self, modules: Iterable[str] | None = None) -> Iterator[tuple[str, Factors]]:
        """Modules and their merged factors; the device computes ahead while the caller uses one.

        Args:
            modules: Those wanted, all by default.

        Raises:
            InputError: If the recipe is full rank.
        """
        if self.recipe.full_rank:
            raise InputError(
                f"{self.recipe.name} is full rank and fits no adapter; give a rank to truncate it "
                "to, fold it into a base, or choose a low-rank method such as ties_knots"
            )
        return self._factors(list(self.stacks if modules is None else modules), self.dtype)

    def coordinate_bytes(self, module: str) -> int:
        """The bytes that the coordinates of one module take, with those of its merge."""
        return 0 if self._pipeline is None else self._pipeline.coordinate_bytes(module)

    def alike(self) -> list[list[str]]:
        """The modules, those together that share their compiled programs."""
        return alike(self.stacks)

    def rank_bound(self, module: str) -> int:
        """The highest rank that the merge of one module can have as an adapter."""
        stack, rank = self.stacks[module], self.recipe.rank
        ranks = [factors.rank for factors in stack]
        most = min(stack[0].out_features, stack[0].in_features)
        if self.recipe.space == "delta":
            bound = most
        elif self._space is not None and self._space.equal_ranks:
            bound = ranks[0]
        else:
            exact_sum = self._space is None and rank is None
            bound = sum(ranks) if exact_sum else min(sum(ranks), most)
        wanted = self._wanted_rank
        return min(bound, wanted) if isinstance(wanted, int) else bound

    def _check_module(self, path: str, stack: Sequence[Factors]) -> None:
        ranks = [factors.rank for factors in stack]
        if self._space.equal_ranks and len(set(ranks)) > 1:
            by_name = ", ".join(
                f"{name!r} {rank}" for name, rank in zip(self.names, ranks, strict=True)
            )
            raise InputError(
                f"{path}: ranks differ ({by_name}); {self.recipe.name!r} combines A and B entry by "
                "entry and needs one rank: use `linear` or a recipe with knots"
            )
        largest = max(math.prod(shape) for shape in self._pipeline.part_shapes(path))
        if largest > _MAX_ENTRIES:
            raise InputError(
                f"{path}: {stack[0].out_features} x {stack[0].in_features} has {largest} entries "
                f"in space {self.recipe.space!r}, at most {_MAX_ENTRIES} can be counted; use "
                "`linear`, or a recipe with knots"
            )

    def _factors(self, paths: Sequence[str], dtype: np.dtype) -> Iterator[tuple[str, Factors]]:
        rank = self._wanted_rank
        self._truncation = None if rank is None else Truncation(rank)
        if self._pipeline is None:
            return self._summed(paths, dtype)
        return self._lifted(paths, dtype)

    def _summed(self, paths: Sequence[str], dtype: np.dtype) -> Iterator[tuple[str, Factors]]:
        for path in paths:
            stack, weights = self.stacks[path], self._weights.of(path)
            gains = self.recipe.lam * weights
            if self.recipe.consensus == "mean":
                gains = gains / weights.sum()
            if self._truncation is None:
                yield path, self._made(path, *concatenated(stack, gains, dtype))
            else:
                a, b, scale = concatenated(stack, gains, compute_dtype())
                a, b = jnp.asarray(a), scale * jnp.asarray(b)
                yield path, self._truncated(path, a, b, dtype)

    def _lifted(self, paths: Sequence[str], dtype: np.dtype) -> Iterator[tuple[str, Factors]]:
        truncates, wide = self._truncation is not None, compute_dtype()
        # Rounded on the device where it can be, so that less is copied.
        on_device = dtype if not truncates and dtype.itemsize < wide.itemsize else wide
        for batch, lifted in self._pipeline.merged(paths, on_device):
            for j, path in enumerate(batch):
                if truncates:
                    a = None if lifted.a is None else lifted.a[j]
                    yield path, self._truncated(path, a, lifted.b[j], dtype)
                    continue
                a, b = (np.asarray(x[j]).astype(dtype, copy=False) for x in lifted[:2])
                alive = np.asarray(lifted.alive[j])
                if not self._space.equal_ranks and not alive.all():
                    # One direction is kept at least, which may be zero.
                    rows = np.flatnonzero(alive) if alive.any() else np.array([0])
                    a, b = a[rows], b[:, rows]
                yield path, self._made(path, a, b)

    def _truncated(self, path: str, a: jax.Array | None, b: jax.Array, dtype: np.dtype) -> Factors:
        pair = self._truncation.of_dense(b) if a is None else self._truncation.of_factors(a, b)
        return self._made(path, *(x.astype(dtype) for x in pair))

    def _made(self, path: str, a: np.ndarray, b: np.ndarray, scale: float = 1.0) -> Factors:
        try:
            return Factors(a, b, scale, embedding=self.stacks[path][0].embedding)
        except InputError as error:
            raise InputError(
                f"{path}: merged, it does not fit {a.dtype} ({error}); give dtype float32 or "
                "bfloat16, or smaller weights"
            ) from error

    @property
    def _wanted_rank(self) -> int | float | None:
        """The rank to truncate to; `inputs` is the highest over all modules, as PEFT takes it."""
        if self.recipe.rank != "inputs":
            return self.recipe.rank
        return max(factors.rank for stack in self.stacks.values() for factors in stack)

    def _deltas(
        self, paths: Iterable[str], in_order: bool
    ) -> Iterator[tuple[str, jax.Array | np.ndarray]]:
        wide = compute_dtype()
        if not self.recipe.full_rank:
            for path, factors in self._factors(list(paths), wide):
                yield path, factors.delta(wide)
            return
        for batch, lifted in self._pipeline.merged(list(paths), wide, in_order=in_order):
            for j, path in enumerate(batch):
                yield path, lifted.b[j]


def _mesh(devices: Sequence[jax.Device] | None) -> Mesh | None:
    devices = jax.local_devices() if devices is None else list(devices)
    if len(devices) < 2:
        return None
    return Mesh(np.array(devices), (kernels.AXIS,), axis_types=(AxisType.Auto,))


def _common(values: Iterable[str | None]) -> str | None:
    """The first that says something."""
    return next((value for value in values if value), None)
