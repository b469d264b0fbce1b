"""Whether adapters belong to one base model, so that their deltas can be added."""

import logging
import re
from collections.abc import Mapping

from langmerge_jax.adapters.adapter import Adapter, Factors, natural_order
from langmerge_jax.errors import InputError

logger = logging.getLogger(__name__)

# How the field names quantised copies of a model: Llama-3.1-8B-unsloth-bnb-4bit, Qwen3-8B-AWQ.
_QUANTISED = re.compile(
    r"([-_.](unsloth-bnb-4bit|bnb-[48]bit|[48]bit|int[48]|nf4|fp8|awq|gptq.*))+$"
)


def check_same_base(
    adapters: Mapping[str, Adapter],
    *,
    allow_base_mismatch: bool = False,
    allow_missing: bool = False,
) -> None:
    """Checks that adapters belong to one base model, so that their deltas can be added.

    Bases whose names differ in nothing but a quantisation (`org/model` and
    `other/Model-bnb-4bit`) are one base, and a warning is logged. An adapter that names no base, no
    revision or no task agrees with every one; revisions are those of one repository, so they are
    compared under one name alone.

    Args:
        adapters: Adapters by the name to use in messages.
        allow_base_mismatch: Whether the base models' names and revisions and the tasks may differ:
            one base may be addressed by two paths. Modules and shapes are compared all the same.
        allow_missing: Whether an adapter may lack modules that another has.

    Raises:
        InputError: If base names, revisions, tasks, module sets, module shapes or the layout of
            weights differ.
    """
    if not adapters:
        return
    first, *others = sorted(adapters)
    if not allow_base_mismatch:
        _check_names(adapters)
        for base in dict.fromkeys(adapter.base for adapter in adapters.values()):
            alike = {name: x for name, x in adapters.items() if x.base == base}
            _check_field(alike, "revision", "versions of the base model")
        _check_field(adapters, "task_type", "tasks")
    for name in others:
        mine, theirs = adapters[name].fan_in_fan_out, adapters[first].fan_in_fan_out
        if mine != theirs:
            raise InputError(
                f"adapter {name!r}: fan_in_fan_out is {mine}, {first!r} has {theirs}; "
                "adapters of different architectures cannot be merged"
            )
    if not allow_missing:
        _check_modules(adapters)
    owners: dict[str, str] = {}
    for name in (first, *others):
        for path, factors in adapters[name].modules.items():
            owner = owners.setdefault(path, name)
            _check_shapes(path, name, factors, owner, adapters[owner].modules[path])


def common_base(adapters: Mapping[str, Adapter]) -> str | None:
    """Returns the base of a merge: of names that differ in quantisation alone the full model's.

    Args:
        adapters: Adapters that passed `check_same_base`. Where that let other names differ, the
            first adapter that names a base decides, in the order of the adapters' names.
    """
    named = [adapters[name].base for name in sorted(adapters) if adapters[name].base]
    for base in named:
        last, full = _parts(base)
        if last == full == _parts(named[0])[1]:
            return base
    return named[0] if named else None


def _check_names(adapters: Mapping[str, Adapter]) -> None:
    named = {name: adapters[name].base for name in sorted(adapters) if adapters[name].base}
    if not named:
        return
    # A full model's, with which a second full model's name does not agree, and a copy's does.
    anchor = next(name for name in named if named[name] == common_base(adapters))
    for name, base in named.items():
        if base != named[anchor] and not _differ_in_quantisation(base, named[anchor]):
            raise InputError(
                f"adapter {name!r}: base model is {base!r}, {anchor!r} has {named[anchor]!r}; "
                "adapters of different base models cannot be merged "
                "(if both names mean one model, set allow_base_mismatch)"
            )
    if len(distinct := list(dict.fromkeys(named.values()))) > 1:
        logger.warning(
            "base models %s are taken for one model, quantised or not",
            " and ".join(repr(base) for base in distinct),
        )


def _check_field(adapters: Mapping[str, Adapter], field: str, what: str) -> None:
    values = {name: getattr(adapters[name], field) for name in sorted(adapters)}
    named = {name: value for name, value in values.items() if value}
    for name, value in named.items():
        anchor = next(iter(named))
        if value != named[anchor]:
            raise InputError(
                f"adapter {name!r}: {field} is {value!r}, {anchor!r} has {named[anchor]!r}; "
                f"adapters of different {what} cannot be merged "
                "(if they belong together all the same, set allow_base_mismatch)"
            )


def _parts(base: str) -> tuple[str, str]:
    """The last component of a name, and the same without what tells a quantisation."""
    last = re.split(r"[/\\]", base.rstrip("/\\"))[-1].lower()
    return last, _QUANTISED.sub("", last)


def _differ_in_quantisation(base: str, other: str) -> bool:
    (last, full), (other_last, other_full) = _parts(base), _parts(other)
    # Equal last components alone are no sign of one model: runs/a/base and runs/b/base.
    return full == other_full and (last != full or other_last != other_full)


def _check_modules(adapters: Mapping[str, Adapter]) -> None:
    first, *others = sorted(adapters)
    reference = adapters[first].modules
    for name in others:
        modules = adapters[name].modules
        for path in sorted(reference.keys() ^ modules.keys(), key=natural_order):
            without, having = (name, first) if path in reference else (first, name)
            raise InputError(
                f"adapter {without!r}: {path} is missing, {having!r} has it; "
                "adapters must cover the same modules to be merged"
            )


def _check_shapes(path: str, name: str, factors: Factors, owner: str, others: Factors) -> None:
    if factors.embedding != others.embedding:
        kinds = {True: "an embedding", False: "a linear layer"}
        raise InputError(
            f"adapter {name!r}: {path} is {kinds[factors.embedding]}, for {owner!r} "
            f"{kinds[others.embedding]}; adapters of different base models cannot be merged"
        )
    for axis in ("in", "out"):
        got, expected = (getattr(x, f"{axis}_features") for x in (factors, others))
        if got != expected:
            raise InputError(
                f"adapter {name!r}: {path} has {axis}={got}, {owner!r} has {expected}; "
                "adapters of different base models cannot be merged"
            )
