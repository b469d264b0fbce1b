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
    `other/Model-bnb-4bit`) are one base, and a warning is logged. An adapter that names no base
    agrees with every name.

    Args:
        adapters: Adapters by the name to use in messages.
        allow_base_mismatch: Whether the base models' names may differ: one base may be addressed
            by two paths. Modules and shapes are compared all the same.
        allow_missing: Whether an adapter may lack modules that another has.

    Raises:
        InputError: If base names, module sets, module shapes or the layout of weights differ.
    """
    if not adapters:
        return
    first, *others = sorted(adapters)
    if not allow_base_mismatch:
        _check_names({name: adapters[name].base for name in sorted(adapters)})
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


def _check_names(bases: Mapping[str, str | None]) -> None:
    named = {name: base for name, base in bases.items() if base}
    if not named:
        return
    anchor = next(iter(named))
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


def _differ_in_quantisation(base: str, other: str) -> bool:
    last = [re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower() for name in (base, other)]
    full = [_QUANTISED.sub("", name) for name in last]
    # Equal last components alone are no sign of one model: runs/a/base and runs/b/base.
    return full[0] == full[1] and full != last


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
