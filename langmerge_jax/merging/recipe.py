"""Recipes: what a merge does, and the names of those that papers and peers have named."""

import dataclasses
import difflib
import math

from langmerge_jax.errors import InputError
from langmerge_jax.merging.consensus import CONSENSUS
from langmerge_jax.merging.spaces import SPACES
from langmerge_jax.merging.sparsify import SPARSIFIERS

# The exact sum as a concatenated adapter. No space of `SPACES`: nothing is elementwise in it.
CONCATENATION = "cat"

# name: (space, sparsify, consensus)
PRESETS: dict[str, tuple[str, str, str]] = {
    "ties": ("delta", "magnitude", "ties"),
    "dare_ties": ("delta", "dare", "ties"),
    "ties_knots": ("knots", "magnitude", "ties"),
    "dare_ties_knots": ("knots", "dare", "ties"),
    "linear": (CONCATENATION, "none", "sum"),
    "cat": (CONCATENATION, "none", "sum"),
    "peft/linear": ("factor", "none", "sum"),
    "peft/ties": ("factor", "magnitude", "peft_ties"),
    "peft/dare_ties": ("factor", "dare", "peft_ties"),
}

# (space, sparsify, consensus, why they make no sense together); None stands for any. The one place
# that decides this.
REFUSED: tuple[tuple[str | None, str | None, str | None, str], ...] = (
    (CONCATENATION, None, "ties", "concatenated factors have no common entries to elect signs on"),
    (CONCATENATION, None, "peft_ties", "concatenated factors have no common entries"),
    (CONCATENATION, "magnitude", None, "dropping entries of factors is no longer the exact sum"),
    (CONCATENATION, "dare", None, "dropping entries of factors is no longer the exact sum"),
    ("delta", "none", "sum", "this is `linear`, which gives the same deltas as a small adapter"),
    ("delta", None, "peft_ties", "PEFT's rule is offered where `peft/ties` applies it, on factors"),
    ("knots", None, "peft_ties", "PEFT's rule is offered where `peft/ties` applies it, on factors"),
    ("factor", None, "ties", "weights act on A and B by square roots there, which elects no sign"),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A way to merge: project to a space, sparsify, combine, lift.

    Attributes:
        space: A name of `SPACES`, or `cat` for the exact sum as a concatenated adapter.
        sparsify: A name of `SPARSIFIERS`.
        consensus: A name of `CONSENSUS`.
        density: Share of entries that the sparsifier keeps, in (0, 1]; None if it drops nothing.
        lam: lambda, the gain on the merged delta.

    Raises:
        InputError: If a name is unknown, a value out of range or the combination senseless.
    """

    space: str
    sparsify: str
    consensus: str
    density: float | None = None
    lam: float = 1.0

    def __post_init__(self) -> None:
        _check_known("space", self.space, [*SPACES, CONCATENATION])
        _check_known("sparsifier", self.sparsify, [*SPARSIFIERS])
        _check_known("consensus", self.consensus, [*CONSENSUS])
        chosen = (self.space, self.sparsify, self.consensus)
        for *pattern, reason in REFUSED:
            if all(want in (None, have) for want, have in zip(pattern, chosen, strict=True)):
                raise InputError(f"recipe {_title(chosen)!r}: {reason}")
        if SPARSIFIERS[self.sparsify] is None:
            if self.density is not None:
                raise InputError(
                    f"recipe {_title(chosen)!r} drops nothing and has no density, "
                    f"got {self.density}; leave it out"
                )
        elif self.density is None:
            raise InputError(
                f"recipe {_title(chosen)!r} needs a density, the share of entries to keep; "
                f"write {_title(chosen)}@0.5, for example"
            )
        elif not 0 < self.density <= 1:
            raise InputError(
                f"recipe {_title(chosen)!r}: density is {self.density}; it is the share of "
                "entries to keep and lies in (0, 1]"
            )
        if not math.isfinite(self.lam):
            raise InputError(f"recipe {_title(chosen)!r}: lambda is {self.lam}; give a number")

    @property
    def name(self) -> str:
        """The text that `parse` reads back as this recipe."""
        text = _title((self.space, self.sparsify, self.consensus))
        if self.density is not None:
            text += f"@{_number(self.density)}"
        if self.lam != 1:
            text += f"*{_number(self.lam)}"
        return text


def parse(text: str) -> Recipe:
    """Reads `<method>[@<density>][*<lambda>]`, such as `ties_knots@0.5` or `linear*0.2`.

    Args:
        text: The method is a name of `PRESETS`, or `<space>:<sparsify>:<consensus>`.

    Raises:
        InputError: If the method is unknown, or a number is none or out of range.
    """
    head, *gain = text.split("*", 1)
    method, *density = head.split("@", 1)
    if method.count(":") == 2:
        space, sparsify, consensus = method.split(":")
    else:
        _check_known("method", method, list(PRESETS))
        space, sparsify, consensus = PRESETS[method]
    return Recipe(
        space,
        sparsify,
        consensus,
        density=_read_number(text, "density", density[0]) if density else None,
        lam=_read_number(text, "lambda", gain[0]) if gain else 1.0,
    )


def _check_known(kind: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown {kind} {name!r}; {hint}known are {', '.join(known)}")


def _read_number(text: str, field: str, digits: str) -> float:
    try:
        return float(digits)
    except ValueError:
        raise InputError(
            f"recipe {text!r}: {field} is {digits!r}, no number; "
            "the form is method@density*lambda, such as ties@0.5*1.2"
        ) from None


def _title(chosen: tuple[str, str, str]) -> str:
    names = (name for name, preset in PRESETS.items() if preset == chosen)
    return next(names, ":".join(chosen))


def _number(value: float) -> str:
    return repr(float(value))
