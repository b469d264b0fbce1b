"""Writing so that a reader never meets half a file."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

from langmerge_jax.errors import InputError


@contextlib.contextmanager
def finished_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a directory to fill, which takes the name `path` once the block ends well.

    What an earlier, interrupted run left is removed; if `path` exists, it is replaced. Killed
    anywhere, `path` is the old directory, the new one, or nothing, never half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.unfinished")
    for left in path.parent.iterdir():
        # The second is what a writer that works aside itself has left beside `work`.
        if left.name == work.name or left.name.startswith(f".{work.name}-"):
            shutil.rmtree(left)
    work.mkdir()
    yield work
    remove_directory(path)
    work.rename(path)


def remove_directory(path: pathlib.Path) -> None:
    """Removes a directory, if it is there, so that no reader meets half of it."""
    old = path.with_name(f".{path.name}.removed")
    if old.exists():
        shutil.rmtree(old)
    if path.exists():
        path.rename(old)
        shutil.rmtree(old)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a whole text file, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.unfinished")
    work.write_text(text, encoding="utf-8")
    os.replace(work, path)


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      InputError: if it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); remove it to have it remade") from None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: pathlib.Path, rows: Iterable[Any]) -> None:
    """Writes one JSON value a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: pathlib.Path) -> list[Any]:
    """Reads a file that `write_jsonl` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
