"""Adapters to disk, in PEFT's format, one module after another."""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from langmerge_jax.adapters.adapter import Adapter, Factors
from langmerge_jax.adapters.config import CONFIG_NAME, config_of
from langmerge_jax.adapters.reading import (
    EMBEDDING,
    INDEX_NAME,
    LINEAR,
    PREFIX,
    SHARD_NAME,
    WEIGHTS_NAME,
)
from langmerge_jax.errors import InputError
from langmerge_jax.files import finished_directory
from langmerge_jax.tensorfiles import TensorWriter, room_for

CARD_NAME = "README.md"
# Its presence says that the card beside it was written here.
RECORD_NAME = "merge.json"

_DEFAULT_ROOM = 2**18

Companions = Mapping[str, str] | Callable[[], Mapping[str, str]]


def write_adapter(
    directory: str | os.PathLike[str],
    modules: Iterable[tuple[str, Factors]],
    *,
    base: str | None = None,
    revision: str | None = None,
    task_type: str | None = None,
    heads: Mapping[str, np.ndarray] | None = None,
    fan_in_fan_out: bool = False,
    companions: Companions | None = None,
    paths: Iterable[str] | None = None,
) -> None:
    """Writes an adapter in PEFT's format, all of it or nothing, holding one module at a time.

    vLLM reads `r` and `lora_alpha` only, which describe the highest rank and the most common scale;
    so an adapter of one scale, whatever its ranks, means the same there, and one of several scales
    does not.

    Args:
        directory: Where to write. It may exist only if it is empty or holds an adapter and
            nothing else, before the first module and after the last; the adapter is then replaced
            (see `finished_directory`). A `README.md` counts as part of the adapter where
            `merge.json` stands beside it.
        modules: Module paths and factors, consumed one by one. Factors keep their dtype.
        base: Name or path of the base model.
        revision: Version of the base model.
        task_type: PEFT's task name.
        heads: Whole tensors of fully trained modules by tensor name.
        fan_in_fan_out: Whether the base stores the weights of adapted layers `[in, out]`.
        companions: Texts to write beside, by file name; a function is called once the modules are
            through.
        paths: The module paths, where they are known beforehand; a large file is then not copied
            once more for the sake of its header.

    Raises:
        InputError: If `directory` exists and is something else, or there is no module.
    """
    heads = heads or {}
    shapes: dict[str, tuple[int, float]] = {}
    with finished_directory(pathlib.Path(directory), check=refuse_other_contents) as fresh:
        # transformers reads the "format" entry to know the layout; PEFT itself writes "pt".
        with TensorWriter(
            fresh / WEIGHTS_NAME, header_room=_room(paths, heads), metadata={"format": "pt"}
        ) as writer:
            for module, factors in modules:
                shapes[module] = (factors.rank, factors.scale)
                key_a, key_b = _keys(module, factors.embedding)
                writer.add(key_a, factors.a)
                writer.add(key_b, factors.b)
            for name, value in heads.items():
                writer.add(PREFIX + name, value)
        if not shapes:
            raise InputError("the adapter has no modules; it needs one pair of factors at least")
        config = config_of(
            shapes,
            base=base,
            revision=revision,
            task_type=task_type,
            heads=heads,
            fan_in_fan_out=fan_in_fan_out,
        )
        texts = companions() if callable(companions) else companions or {}
        texts = {CONFIG_NAME: json.dumps(config, indent=2, sort_keys=True) + "\n"} | dict(texts)
        for name, text in texts.items():
            (fresh / name).write_text(text, encoding="utf-8")


def save_adapter(directory: str | os.PathLike[str], adapter: Adapter) -> None:
    """Writes an adapter in PEFT's format, all of it or nothing.

    Args:
        directory: Where to write; see `write_adapter`.
        adapter: What to write. Factors keep their dtype.

    Raises:
        InputError: If `directory` exists and is something else.
    """
    write_adapter(
        directory,
        adapter.modules.items(),
        base=adapter.base,
        revision=adapter.revision,
        task_type=adapter.task_type,
        heads=adapter.heads,
        fan_in_fan_out=adapter.fan_in_fan_out,
        paths=adapter.modules,
    )


def _keys(module: str, embedding: bool) -> list[str]:
    return [f"{PREFIX}{module}.{kind}" for kind in (EMBEDDING if embedding else LINEAR)]


def _room(paths: Iterable[str] | None, heads: Iterable[str]) -> int:
    if paths is None:
        return _DEFAULT_ROOM
    keys = [key for path in paths for key in _keys(path, embedding=True)]
    return room_for(keys + [PREFIX + name for name in heads])


def refuse_other_contents(directory: pathlib.Path) -> None:
    """Raises InputError if a directory exists and holds anything but an adapter."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InputError(f"{directory}: is a file; give a directory to write the adapter to")
    contents = sorted(entry.name for entry in directory.iterdir())
    ours = {CONFIG_NAME, WEIGHTS_NAME, INDEX_NAME}
    if RECORD_NAME in contents:
        ours |= {RECORD_NAME, CARD_NAME}
    others = [x for x in contents if x not in ours and not SHARD_NAME.fullmatch(x)]
    if contents and (others or CONFIG_NAME not in contents):
        raise InputError(
            f"{directory}: holds {(others or contents)[0]!r}, which replacing it by an adapter "
            "would delete; give another directory"
        )
