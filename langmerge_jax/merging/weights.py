"""Weights of the adapters: one number each, by module pattern, or going with the depth."""

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from langmerge_jax.errors import InputError

# A number; or two, for the first and the last layer and evenly between them.
Weight = float | tuple[float, float]

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


class Weights:
    """The weight of every adapter in every module.

    Args:
        given: By adapter a weight, or weights by module pattern (as `fnmatch` reads them, the first
            that matches counts, 1 where none does). None is 1 for all.
        names: The adapters, in the order of the results.
        modules: All module paths.
        relative: Whether weights are relative importance: not negative, and one is positive.
        title: What the weights are for, in messages.

    Raises:
        InputError: If adapters and weights do not match, a pattern matches no module, a weight is
            no finite number or negative where it must not be, or a weight goes by depth in a
            module without a layer number.
    """

    def __init__(
        self,
        given: Mapping[str, Weight | Mapping[str, Weight]] | None,
        names: Sequence[str],
        modules: Iterable[str],
        relative: bool,
        title: str,
    ):
        given = dict.fromkeys(names, 1.0) if given is None else given
        for name in sorted(given.keys() ^ set(names)):
            fault = "no adapter of that name" if name in given else "no weight for that adapter"
            raise InputError(
                f"weights: {name!r}: {fault}; give one weight each for {', '.join(names)}"
            )
        modules = list(modules)
        patterns = [_patterns(name, given[name], modules) for name in names]
        depths = _depths(modules)
        self._of = {
            path: np.array(
                [
                    _at(name, pattern, path, depths.get(path))
                    for name, pattern in zip(names, patterns, strict=True)
                ]
            )
            for path in modules
        }
        for values in self._of.values():
            for name, value in zip(names, values, strict=True):
                if not math.isfinite(value):
                    raise InputError(f"weights: {name!r} has {value}; give a finite number")
                if relative and value < 0:
                    raise InputError(
                        f"weights: {name!r} has {value}; {title!r} takes weights as relative "
                        "importance, which is not negative; use `linear` to subtract"
                    )
        for path, values in self._of.items():
            if relative and not values.any():
                raise InputError(
                    f"weights: all are zero in {path}; {title!r} takes them as relative importance,"
                    " so one must be positive"
                )
        if relative:
            self._of = {path: values / values.max() for path, values in self._of.items()}

    def of(self, module: str) -> np.ndarray:
        """Float64 `[n]`; relative weights have 1 as the largest."""
        return self._of[module]


def read_weights(
    entries: Iterable[str], names: Sequence[str]
) -> dict[str, Weight | dict[str, Weight]]:
    """Reads `name=number`, `name=first..last` (over the depth) or `name:pattern=...`.

    Args:
        entries: In any number and order; an adapter without one has weight 1.
        names: Of all adapters.

    Raises:
        InputError: If an entry is of no such form, or given twice.
    """
    found: dict[str, dict[str, Weight]] = {name: {} for name in names}
    for entry in entries:
        left, equals, value = entry.rpartition("=")
        name, colon, pattern = left.partition(":")
        if not (name and equals and value) or (colon and not pattern):
            raise InputError(f"weights: {entry!r} is not name=number, such as en=1 or en:*.mlp.*=1")
        if name not in found:
            raise InputError(
                f"weights: {name!r}: no adapter of that name; known are {', '.join(names)}"
            )
        pattern = pattern or "*"
        if pattern in found[name]:
            raise InputError(f"weights: {left!r} is given twice")
        found[name][pattern] = _number(entry, value)
    return {name: _told(patterns) for name, patterns in found.items()}


def _told(patterns: dict[str, Weight]) -> Weight | dict[str, Weight]:
    """The plain weight of an adapter last: it is for modules that no pattern of its own matches."""
    if patterns.keys() <= {"*"}:
        return patterns.get("*", 1.0)
    return dict(sorted(patterns.items(), key=lambda item: item[0] == "*"))


def _number(entry: str, text: str) -> Weight:
    try:
        first, dots, last = text.partition("..")
        return (float(first), float(last)) if dots else float(text)
    except ValueError:
        raise InputError(
            f"weights: {entry!r}: {text!r} is no number; give one, or first..last over the depth"
        ) from None


def _patterns(
    name: str, weight: Weight | Mapping[str, Weight], modules: Sequence[str]
) -> Mapping[str, Weight]:
    if not isinstance(weight, Mapping):
        return {"*": weight}
    for pattern in weight:
        if not fnmatch.filter(modules, pattern):
            raise InputError(
                f"weights: {name!r}: pattern {pattern!r} matches no module; they are named like "
                f"{modules[0]}"
            )
    return weight


def _depths(modules: Iterable[str]) -> dict[str, float]:
    """Where a module lies between the first layer that is adapted, 0, and the last, 1.

    Layers are counted within what has a numbering of its own, such as a tower for images.
    """
    found: dict[str, dict[str, int]] = {}
    for path in modules:
        if match := _LAYER.search(path):
            found.setdefault(path[: match.start()], {})[path] = int(match[1])
    depths = {}
    for layers in found.values():
        first, last = min(layers.values()), max(layers.values())
        depths |= {path: (x - first) / max(last - first, 1) for path, x in layers.items()}
    return depths


def _at(name: str, patterns: Mapping[str, Weight], path: str, depth: float | None) -> float:
    weight = next((w for p, w in patterns.items() if fnmatch.fnmatchcase(path, p)), 1.0)
    if not isinstance(weight, tuple):
        return weight
    if depth is None:
        raise InputError(
            f"weights: {name!r} goes by depth, and {path} has no layer number; give it a weight by "
            "a pattern of its own"
        )
    first, last = weight
    return first + (last - first) * depth
