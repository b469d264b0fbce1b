"""Writing so that a reader never meets half a file."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any


@contextlib.contextmanager
def finished_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a directory to fill, which takes the name `path` once the block ends well.

    What an earlier, interrupted run left is removed; if `path` exists, it is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    yield work
    if path.exists():
        shutil.rmtree(path)
    work.rename(path)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a whole text file, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.unfinished")
    work.write_text(text, encoding="utf-8")
    os.replace(work, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: pathlib.Path, rows: Iterable[Any]) -> None:
    """Writes one JSON value a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
