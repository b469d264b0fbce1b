"""Answers as they come, so that a killed evaluation goes on where it stood."""

import json
import os
import pathlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from langmerge_jax.files import remove_directory


class Journal:
    """Files to which answers are added, a directory for each variant.

    Args:
      folder: of the journal.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def read(self, key: str, language: str) -> dict[int, dict[str, Any]]:
        """Returns {number of the row: answer} of a variant on a language."""
        path = self._path(key, language)
        if not path.exists():
            return {}
        found = {}
        for line in path.read_bytes().split(b"\n")[:-1]:  # What follows the last end was cut off.
            answer = json.loads(line)
            found[answer.pop("row")] = answer
        return found

    def add(self, key: str, language: str, answers: Mapping[int, Mapping[str, Any]]) -> None:
        """Adds answers to those of a variant on a language."""
        path = self._path(key, language)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (
            json.dumps({"row": row, **answer}, ensure_ascii=False) + "\n"
            for row, answer in answers.items()
        )
        with path.open("ab+") as file:
            _end_line(file)
            file.write("".join(lines).encode())

    def keep_only(self, keys: Collection[str]) -> None:
        """Removes what belongs to other variants."""
        for path in self._folder.iterdir() if self._folder.exists() else ():
            if path.name not in keys:
                shutil.rmtree(path)

    def remove(self, keys: Sequence[str]) -> None:
        """Removes what belongs to some variants, and the journal once nothing is left."""
        for key in keys:
            remove_directory(self._folder / key)
        if self._folder.exists() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _path(self, key: str, language: str) -> pathlib.Path:
        return self._folder / key / f"{language}.jsonl"


def _end_line(file) -> None:
    """Takes off the part of a line that a killed process left."""
    if not file.seek(0, os.SEEK_END):
        return
    file.seek(-1, os.SEEK_END)
    if file.read() != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
