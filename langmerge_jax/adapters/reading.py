"""Adapters from disk, in PEFT's format, mapped into memory.

What PEFT 0.18 to 0.21 and vLLM write is read. A file that says more than an `Adapter` can hold is
refused, never read in part.
"""

import json
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from langmerge_jax.adapters.adapter import Adapter, Factors, NotFiniteError
from langmerge_jax.adapters.config import (
    CONFIG_NAME,
    check_covered,
    rank_and_scale,
    read_config,
    saved_module,
)
from langmerge_jax.errors import InputError
from langmerge_jax.tensorfiles import map_tensors

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "adapter_model.safetensors"
INDEX_NAME = "adapter_model.safetensors.index.json"
SHARD_NAME = re.compile(r"adapter_model-(\d{5})-of-(\d{5})\.safetensors")
PREFIX = "base_model.model."

_FACTOR = re.compile(r"(?P<module>.+)\.(?P<kind>lora_[AB]\.weight|lora_embedding_[AB])")
# The tensors of a linear layer and of an embedding: A, then B.
LINEAR = ("lora_A.weight", "lora_B.weight")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")

# Tensors of LoRA's relatives, by a piece of their name, to say what was found.
_FOREIGN_TENSORS = {
    "lora_magnitude_vector": "DoRA's magnitude vector",
    "lora_B.bias": "a bias of lora_B",
    "modules_to_save": "a fully trained module under a name that PEFT does not read",
}

# What each tensor is, and the file it is in.
Found = dict[str, tuple[np.ndarray, pathlib.Path]]


def load_adapter(directory: str | os.PathLike[str]) -> Adapter:
    """Reads an adapter in PEFT's format.

    Factors keep the dtype they are stored in and are read-only views of the mapped files. Rank and
    scale follow `r`, `lora_alpha`, `rank_pattern`, `alpha_pattern` and `use_rslora` as PEFT reads
    them. Copies of base weights, which PEFT saves beside LoRA of `lm_head` or the embedding, are
    left out, and a warning is logged.

    Args:
        directory: The directory that holds `adapter_config.json` and `adapter_model.safetensors`,
            or shards of the latter.

    Returns:
        The adapter.

    Raises:
        InputError: If a file is missing or broken, or holds what an `Adapter` cannot.
    """
    directory = pathlib.Path(directory)
    config_path = directory / CONFIG_NAME
    config = read_config(config_path)
    pairs, heads = _divided(_tensors(directory), config)
    modules = {
        module: _factors(module, pair, config, config_path) for module, pair in pairs.items()
    }
    check_covered(config, modules, heads, config_path)
    try:
        return Adapter(
            modules,
            base=config.get("base_model_name_or_path") or None,
            revision=config.get("revision"),
            task_type=config.get("task_type"),
            heads={name: tensor for name, (tensor, _) in heads.items()},
            fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        )
    except InputError as error:
        raise InputError(f"{directory}: {_with_cause(error)}") from error


def _tensors(directory: pathlib.Path) -> Found:
    """Every tensor of the adapter by name, and the file it is in."""
    whole, index = directory / WEIGHTS_NAME, directory / INDEX_NAME
    shards = sorted(path for path in directory.iterdir() if SHARD_NAME.fullmatch(path.name))
    if whole.exists() and (index.exists() or shards):
        other = index if index.exists() else shards[0]
        raise InputError(
            f"{whole}: stands beside {other.name}, and one adapter is stored once; remove either"
        )
    if index.exists():
        return _indexed(index)
    if shards:
        return _mapped(_complete(shards))
    if not whole.is_file():
        pickled = directory / "adapter_model.bin"
        hint = (
            f"{pickled.name} is a pickle, which is never read; save it again as safetensors"
            if pickled.exists()
            else "the adapter is incomplete"
        )
        raise InputError(f"{whole}: no such file; {hint}")
    return _mapped([whole])


def _mapped(paths: Iterable[pathlib.Path]) -> Found:
    found: Found = {}
    for path in paths:
        for name, tensor in map_tensors(path)[0].items():
            if name in found:
                raise InputError(f"{path}: tensor {name!r} is in {found[name][1].name} too")
            found[name] = (tensor, path)
        if not found:
            raise InputError(f"{path}: holds no tensors; the adapter is incomplete")
    return found


def _complete(shards: list[pathlib.Path]) -> list[pathlib.Path]:
    counts = {SHARD_NAME.fullmatch(path.name)[2] for path in shards}
    if len(counts) > 1 or len(shards) != int(min(counts)):
        raise InputError(
            f"{shards[0].parent}: has {len(shards)} shards, by {shards[0].name} it is to have "
            f"{int(min(counts))}; the adapter is incomplete"
        )
    return shards


def _indexed(index: pathlib.Path) -> Found:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
        within = all(pathlib.PurePath(name).name == name for name in files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: no valid index of shards ({error!r})") from error
    if not within:
        raise InputError(f"{index}: names files of another directory")
    found = _mapped(index.parent / name for name in files)
    for name in sorted(places.keys() ^ found.keys()):
        if name in found:
            raise InputError(f"{found[name][1]}: tensor {name!r} is not in {index.name}")
        raise InputError(f"{index.parent / places[name]}: has no tensor {name!r} as the index says")
    return found


def _divided(found: Found, config: Mapping[str, Any]) -> tuple[dict[str, Found], Found]:
    """The tensors of `found` as factors by module and kind, and heads by name."""
    pairs: dict[str, Found] = {}
    heads: Found = {}
    others: Found = {}
    for key, (tensor, path) in found.items():
        name = key.removeprefix(PREFIX)
        foreign = [kind for piece, kind in _FOREIGN_TENSORS.items() if piece in name]
        if name == key or foreign:
            kind = foreign[0] if foreign else f"outside of {PREFIX}"
            raise InputError(
                f"{path}: tensor {key!r} is {kind}; only factors of LoRA and the modules of "
                "modules_to_save are handled"
            )
        if match := _FACTOR.fullmatch(name):
            pairs.setdefault(match["module"], {})[match["kind"]] = (tensor, path)
        elif saved_module(config, name):
            heads[name] = (tensor, path)
        else:
            others[name] = (tensor, path)
    copies = []
    for name, (tensor, path) in others.items():
        shapes = [head.shape for head, _ in heads.values()]
        if re.sub(r"\.base_layer\.(weight|bias)$", "", name) in pairs:
            copies.append(name)
        elif config.get("ensure_weight_tying") and tensor.shape in shapes:
            heads[name] = (tensor, path)
        else:
            raise InputError(
                f"{path}: tensor {PREFIX + name!r} is neither a factor of LoRA nor of a module in "
                "modules_to_save; where PEFT copied an unchanged base weight, save the adapter "
                "again with save_embedding_layers=False"
            )
    if copies:
        logger.warning(
            "%s: left out %s, which PEFT saves beside LoRA as copies of the base's own weights",
            others[copies[0]][1],
            ", ".join(copies),
        )
    return pairs, heads


def _factors(
    module: str, pair: Found, config: Mapping[str, Any], config_path: pathlib.Path
) -> Factors:
    path = next(iter(pair.values()))[1]
    embedding = any(kind in pair for kind in EMBEDDING)
    kinds = EMBEDDING if embedding else LINEAR
    for kind in kinds:
        if kind not in pair:
            raise InputError(f"{path}: {module} has no {kind}; the adapter is incomplete")
    for kind in pair:
        if kind not in kinds:
            raise InputError(
                f"{path}: {module} has {kind} and {kinds[0]}; it can be one layer only"
            )
    rank, scale = rank_and_scale(config, module, config_path)
    (a, _), (b, _) = (pair[kind] for kind in kinds)
    try:
        factors = Factors(a, b, scale, embedding=embedding)
    except InputError as error:
        raise InputError(f"{path}: {module}: {_with_cause(error)}") from error
    if factors.rank != rank:
        raise InputError(
            f"{path}: {module} has rank {factors.rank}, {CONFIG_NAME} says {rank}; "
            "config and weights are of different adapters"
        )
    return factors


def _with_cause(error: InputError) -> str:
    diverged = isinstance(error, NotFiniteError)
    return f"{error}; the run that made the adapter diverged" if diverged else str(error)
