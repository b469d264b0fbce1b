"""Where examples come from: local jsonl files or a data set of the Hugging Face hub."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from langmerge_jax.errors import InputError

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled text.

    Attributes:
      id: stable name within its language and split.
      language: code such as `en`.
      text: what is to be judged.
      label: one of the task's labels.
    """

    id: str
    language: str
    text: str
    label: str


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """Which rows to read.

    Attributes:
      path: for local files a path with the placeholders `{language}` and `{split}`; for the hub
        `hf:<data set name or local directory>`.
      text_field, label_field: names of the two columns.
      language_field: column with the language, for a hub data set that mixes them; "" if its
        configurations are named by language instead.
      labels: what `label_field` may hold.
      rows: {split: how many rows to draw}; 0 takes all.
      seed: of the draw.
    """

    path: str
    text_field: str
    label_field: str
    language_field: str
    labels: tuple[str, ...]
    rows: Mapping[str, int]
    seed: int


def load_split(spec: SourceSpec, language: str, split: str) -> list[Example]:
    """Reads one language's split and draws the wanted number of rows.

    The draw depends on the seed, the language and the split alone, so every machine draws the
    same rows.

    Returns:
      Examples in the order drawn; all rows, in file order, if no more than wanted are there.

    Raises:
      InputError: for a missing file, a line that is no JSON object, an unknown label, an empty
        split; it names file and line.
    """
    if spec.path.startswith("hf:"):
        rows, where = _hub_rows(spec, language, split)
    else:
        path = pathlib.Path(spec.path.format(language=language, split=split))
        rows, where = _jsonl_rows(path), str(path)
    examples = [_example(spec, language, place, row) for place, row in rows]
    if not examples:
        raise InputError(f"{where}: the {split} split of {language!r} has no rows")
    wanted = spec.rows[split]
    if wanted and len(examples) > wanted:
        name = f"{spec.seed}/{language}/{split}".encode()
        draw = np.random.default_rng(list(hashlib.sha256(name).digest()))
        examples = [examples[i] for i in draw.permutation(len(examples))[:wanted]]
    return examples


def _example(spec: SourceSpec, language: str, place: str, row: Mapping) -> Example:
    for field in (spec.text_field, spec.label_field):
        if not isinstance(row.get(field), str):
            raise InputError(
                f"{place}: the field {field!r} is missing or no text; the row has {sorted(row)}"
            )
    label = row[spec.label_field]
    if label not in spec.labels:
        raise InputError(f"{place}: unknown label {label!r}; known: {', '.join(spec.labels)}")
    return Example(str(row.get("id", place)), language, row[spec.text_field], label)


def _jsonl_rows(path: pathlib.Path) -> Iterable[tuple[str, Mapping]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", _object(line, f"{path}:{number}")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 ({error})") from error


def _object(line: str, place: str) -> Mapping:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError(f"{place}: a JSON {type(row).__name__}, not an object")
    return row


def _hub_rows(spec: SourceSpec, language: str, split: str):
    # Importing `datasets` takes seconds, and local files do not need it.
    import datasets

    name = spec.path.removeprefix("hf:")
    config = None if spec.language_field else language
    try:
        table = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"data set {name!r}, split {split!r}: {reason}") from error
    where = f"{name}[{split}]"
    if spec.language_field:
        if spec.language_field not in table.column_names:
            raise InputError(
                f"{where}: no column {spec.language_field!r}; it has {table.column_names}"
            )
        languages = np.asarray(table[spec.language_field])
        table = table.select(np.flatnonzero(languages == language))
    return ((f"{where}:{i}", row) for i, row in enumerate(table)), where
