"""Recipes: what a merge does, how it is written down, and which combinations make sense."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from langmerge_jax.errors import InputError
from langmerge_jax.merging.consensus import CONSENSUS, Vote
from langmerge_jax.merging.presets import PRESETS
from langmerge_jax.merging.spaces import SPACES
from langmerge_jax.merging.sparsify import SPARSIFIERS

# The exact sum as a concatenated adapter. No space of `SPACES`: nothing is elementwise in it.
CONCATENATION = "cat"


@dataclasses.dataclass(frozen=True)
class Option:
    """A setting of a recipe beyond its three names, density and lambda.

    Attributes:
        default: Its value where it is not given.
        choices: The values it can have; empty if it is a number.
        applies: What a recipe must have for the option to mean anything: values by field.
        help: One line.
    """

    default: Any
    choices: tuple[str, ...]
    applies: Mapping[str, tuple[str, ...]]
    help: str


_TRIMS = ("magnitude", "magnitude_mergekit", "magnitude_official")
_TIES = {"consensus": ("ties",)}

OPTIONS: dict[str, Option] = {
    "scope": Option(
        "module", ("module", "global"), {"sparsify": _TRIMS}, "what a trim ranks together"
    ),
    "rescale": Option(
        "inverse",
        ("inverse", "l1"),
        {"sparsify": ("dare", "della")},
        "survivors: divided by their probability, or scaled to the L1 norm before",
    ),
    "epsilon": Option(
        0.15, (), {"sparsify": ("della",)}, "DELLA: probabilities span density -+ epsilon"
    ),
    "gamma": Option(
        0.01, (), {"sparsify": ("breadcrumbs",)}, "Breadcrumbs: share of outliers dropped"
    ),
    "sign": Option(
        "total", ("total", "frequency"), _TIES, "elected by the sum of values or of signs"
    ),
    "election": Option(
        "weighted", ("weighted", "unweighted"), _TIES, "whether weights count in the election"
    ),
    "divisor": Option(
        "weights",
        ("weights", "count", "none"),
        _TIES,
        "of the agreeing: what their sum is divided by",
    ),
    "zero_sign": Option(
        "plus",
        ("plus", "majority"),
        _TIES,
        "elected where the sum is zero: +, or the commoner sign",
    ),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A combination that makes no sense: a recipe is refused if all fields match."""

    reason: str
    fields: Mapping[str, tuple[str, ...]]


def _rule(reason: str, **fields: str | tuple[str, ...]) -> Rule:
    return Rule(reason, {k: (v,) if isinstance(v, str) else v for k, v in fields.items()})


_DROPPING = tuple(name for name, function in SPARSIFIERS.items() if function is not None)

# The one place that decides this.
REFUSED: tuple[Rule, ...] = (
    _rule(
        "concatenated factors have no common entries to elect signs on",
        space=CONCATENATION,
        consensus=("ties", "sce", "sce_mergekit"),
    ),
    _rule(
        "dropping entries of factors is no longer the exact sum",
        space=CONCATENATION,
        sparsify=_DROPPING,
    ),
    _rule(
        "this is `linear`, which gives the same deltas as a small adapter",
        space="delta",
        sparsify="none",
        consensus="sum",
    ),
    _rule(
        "this is `soup`, which gives the same deltas as a small adapter",
        space="delta",
        sparsify="none",
        consensus="mean",
    ),
    _rule(
        "weights act on A and B by square roots there, which elects no sign; "
        "PEFT's rule is election=unweighted",
        space="factor",
        consensus="ties",
        election="weighted",
    ),
    _rule(
        "weights act on A and B by square roots there and weigh no mean; "
        "PEFT's rule is divisor=count",
        space="factor",
        consensus="ties",
        divisor=("weights", "none"),
    ),
    _rule(
        "the mean of A times the mean of B is not the mean of B A; use `soup`",
        space="factor",
        consensus="mean",
    ),
    _rule(
        "A and B apart are there to reproduce PEFT, which has no such type",
        space="factor",
        sparsify=("magnitude_mergekit", "magnitude_official", "della", "breadcrumbs", "sce"),
    ),
    _rule(
        "A and B apart are there to reproduce PEFT, which has no such type",
        space="factor",
        consensus=("sce", "sce_mergekit"),
    ),
    _rule(
        "PEFT trims A and B of each module on their own",
        space="factor",
        scope="global",
    ),
    _rule(
        "the commoner sign is one of all entries, and A and B are two sets of them",
        space="factor",
        zero_sign="majority",
    ),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A way to merge: project to a space, sparsify, combine, lift, truncate.

    Attributes:
        space: A name of `SPACES`, or `cat` for the exact sum as a concatenated adapter.
        sparsify: A name of `SPARSIFIERS`.
        consensus: A name of `CONSENSUS`.
        density: Share of entries that the sparsifier keeps, in (0, 1]; None if it drops nothing.
        lam: lambda, the gain on the merged delta.
        rank: Of the result: None for what comes out exactly, a whole number, `inputs` for the
            highest rank of the inputs over all modules, or a share of the energy in (0, 1) for as
            much as each module needs to keep that.
        scope, rescale, epsilon, gamma, sign, election, divisor, zero_sign: See `OPTIONS`.

    Raises:
        InputError: If a name is unknown, a value out of range or the combination senseless.
    """

    space: str
    sparsify: str
    consensus: str
    density: float | None = None
    lam: float = 1.0
    rank: int | float | str | None = None
    scope: str = "module"
    rescale: str = "inverse"
    epsilon: float = 0.15
    gamma: float = 0.01
    sign: str = "total"
    election: str = "weighted"
    divisor: str = "weights"
    zero_sign: str = "plus"

    def __post_init__(self) -> None:
        _check_known("space", self.space, [*SPACES, CONCATENATION])
        _check_known("sparsifier", self.sparsify, [*SPARSIFIERS])
        _check_known("consensus", self.consensus, [*CONSENSUS])
        title = repr(_title(self)[0])
        for name, option in OPTIONS.items():
            _check_option(title, self, name, option)
        for rule in REFUSED:
            if _matches(self, rule.fields):
                raise InputError(f"recipe {title}: {rule.reason}")
        if self.rank is not None:
            _check_rank(title, self.rank)
        self._check_density(title)
        if not math.isfinite(self.lam):
            raise InputError(f"recipe {title}: lambda is {self.lam}; give a number")

    def _check_density(self, title: str) -> None:
        if SPARSIFIERS[self.sparsify] is None:
            if self.density is not None:
                raise InputError(
                    f"recipe {title} drops nothing and has no density, got {self.density}; "
                    "leave it out"
                )
            return
        if self.density is None:
            raise InputError(
                f"recipe {title} needs a density, the share of entries to keep; "
                f"write {title[1:-1]}@0.5, for example"
            )
        if not 0 < self.density <= 1:
            raise InputError(
                f"recipe {title}: density is {self.density}; it is the share of entries to keep "
                "and lies in (0, 1]"
            )
        if self.sparsify == "della" and self.density < 1:
            low, high = self.density - self.epsilon, self.density + self.epsilon
            if not (low > 0 and high <= 1):
                raise InputError(
                    f"recipe {title}: density {self.density} -+ epsilon {self.epsilon} leaves "
                    f"(0, 1]; give epsilon={min(self.density, 1 - self.density) / 2:.3g}, "
                    "for example"
                )
        if self.sparsify == "breadcrumbs" and not 0 <= self.gamma < 1:
            raise InputError(f"recipe {title}: gamma is {self.gamma}; it lies in [0, 1)")

    @property
    def vote(self) -> Vote:
        """How a TIES consensus elects and divides."""
        return Vote(self.sign, self.election, self.divisor)

    @property
    def relative(self) -> bool:
        """Whether weights are relative importance: positive, and the same when all are doubled."""
        relative = CONSENSUS[self.consensus].relative
        return relative and (self.consensus != "ties" or self.divisor == "weights")

    @property
    def full_rank(self) -> bool:
        """Whether the result fits no adapter: it must be folded into a base."""
        return self.space == "delta" and self.rank is None

    @property
    def name(self) -> str:
        """The text that `parse` reads back as this recipe."""
        text, options = _title(self)
        if self.density is not None:
            text += f"@{_text(self.density)}"
        if self.lam != 1:
            text += f"*{_text(self.lam)}"
        return text + "".join(f",{name}={_text(value)}" for name, value in options.items())


def parse(text: str) -> Recipe:
    """Reads `<method>[@<density>][*<lambda>][,<option>=<value>]...`, such as `ties@0.5,rank=64`.

    Args:
        text: The method is a name of `PRESETS`, or `<space>:<sparsify>:<consensus>`; the options
            are those of `OPTIONS`, and `rank`.

    Raises:
        InputError: If the method or an option is unknown, or a number is none or out of range.
    """
    body, *settings = text.split(",")
    head, *gain = body.split("*", 1)
    method, *density = head.split("@", 1)
    fields: dict[str, Any] = {}
    if method.count(":") == 2:
        fields["space"], fields["sparsify"], fields["consensus"] = method.split(":")
    else:
        _check_known("method", method, list(PRESETS))
        fields |= PRESETS[method].fields
    if density:
        fields["density"] = _read_number(text, "density", density[0])
    if gain:
        fields["lam"] = _read_number(text, "lambda", gain[0])
    given: set[str] = set()
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"recipe {text!r}: {setting!r} is not option=value")
        _check_known("option", name, [*OPTIONS, "rank"])
        if name in given:
            raise InputError(f"recipe {text!r}: {name} is given twice")
        given.add(name)
        if name == "rank":
            fields[name] = read_rank(value)
        elif OPTIONS[name].choices:
            fields[name] = value
        else:
            fields[name] = _read_number(text, name, value)
    return Recipe(**fields)


def read_rank(text: str) -> int | float | str | None:
    """Reads `exact`, `inputs`, a whole number, or a share of the energy in (0, 1).

    Raises:
        InputError: If it is none of these.
    """
    if text in ("exact", "inputs"):
        return None if text == "exact" else text
    try:
        rank = int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        rank = math.nan
    _check_rank(f"rank={text}", rank)
    return rank


def _check_rank(where: str, rank: int | float | str) -> None:
    if rank == "inputs":
        return
    whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    share = isinstance(rank, float) and 0 < rank < 1
    if not (whole or share):
        raise InputError(
            f"{where}: rank is {rank}; give a whole number from 1, a share of the energy in "
            "(0, 1), `inputs` or `exact`"
        )


def _check_option(title: str, recipe: Recipe, name: str, option: Option) -> None:
    value = getattr(recipe, name)
    if option.choices:
        _check_known(f"{name} of recipe {title}", value, list(option.choices))
    elif not math.isfinite(value) or value < 0:
        raise InputError(f"recipe {title}: {name} is {value}; give a number from 0")
    if value != option.default and not _matches(recipe, option.applies):
        needed = " and ".join(f"{k} {' or '.join(v)}" for k, v in option.applies.items())
        raise InputError(f"recipe {title}: {name}={value} means nothing without {needed}")


def _matches(recipe: Recipe, fields: Mapping[str, tuple[str, ...]]) -> bool:
    return all(getattr(recipe, name) in values for name, values in fields.items())


def _check_known(kind: str, name: str, known: Sequence[str]) -> None:
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


def _title(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """The preset nearest to a recipe and the options in which it differs."""
    triple = {"space": recipe.space, "sparsify": recipe.sparsify, "consensus": recipe.consensus}
    defaults = {name: option.default for name, option in OPTIONS.items()} | {"rank": None}
    best = ":".join(triple.values()), _differences(recipe, defaults)
    candidates = [
        (name, _differences(recipe, defaults | preset.fields))
        for name, preset in PRESETS.items()
        if triple.items() <= preset.fields.items()
    ]
    if candidates:
        best = min(candidates, key=lambda candidate: len(candidate[1]))
    return best


def _differences(recipe: Recipe, fields: Mapping[str, Any]) -> dict[str, Any]:
    names = [*OPTIONS, "rank"]
    return {n: getattr(recipe, n) for n in names if getattr(recipe, n) != fields[n]}


def _text(value: float | int | str | None) -> str:
    if value is None:
        return "exact"
    return repr(float(value)) if isinstance(value, float) else str(value)
