"""Rows in local files: JSON lines, JSON, comma or tab separated values, parquet."""

import csv
import functools
import glob
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from langmerge_jax.data.table import Joined, MissingSplit, Table
from langmerge_jax.errors import InputError


def file_table(path: pathlib.Path) -> Table:
    """Reads all rows of a file, in the format that its suffix tells.

    Args:
      path: of the file. With `*` in it, which stands for any part of a name, all files that it
        fits are one table, in the order of their names.

    Raises:
      InputError: for a missing file, an unknown suffix, or content that is not in that format; it
        names file and line.
    """
    if "*" in str(path):
        return _files(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: no reader for {path.suffix or 'a file without suffix'}; "
            f"known: {', '.join(READERS)}"
        )
    if not path.is_file():
        raise MissingSplit(f"{path}: no such file")
    return reader(path)


def _files(pattern: pathlib.Path) -> Table:
    # What else glob knows may be meant literally.
    literal = str(pattern).replace("[", "[[]").replace("?", "[?]")
    paths = sorted(path for path in map(pathlib.Path, glob.glob(literal)) if path.is_file())
    if not paths:
        raise MissingSplit(f"{pattern}: no file fits this pattern")
    parts = [file_table(path) for path in paths]
    for part in parts:
        if not len(part):
            raise InputError(f"{part.name}: no rows")
    return Joined(str(pattern), parts)


def _lines(path: pathlib.Path) -> Iterator[str]:
    """Yields lines with their ends; only a newline ends one, not U+2028 and its like."""
    with path.open("rb") as raw:
        for number, line in enumerate(raw, start=1):
            try:
                # Spreadsheets write a byte order mark at the start.
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{number}: not UTF-8 ({error.reason})") from error


def _json_lines(path: pathlib.Path) -> Table:
    rows, numbers = [], []
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{place}: not JSON ({error})") from error
            rows.append(_object(row, place))
            numbers.append(number)
    return Table(str(path), rows, lines=numbers)


def _json(path: pathlib.Path) -> Table:
    text = "".join(_lines(path))
    if not text.strip():
        return Table(str(path), [])
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        # A whole value and then more: JSON lines, which some publishers call .json.
        if error.msg == "Extra data":
            return _json_lines(path)
        raise InputError(f"{path}:{error.lineno}: not JSON ({error})") from error
    if isinstance(content, dict):
        return Table(str(path), list(_innermost(content, (), str(path))))
    if not isinstance(content, list):
        raise InputError(
            f"{path}: a JSON {type(content).__name__}, neither a list of objects nor an object"
        )
    rows = [_object(row, f"{path}: row {i}") for i, row in enumerate(content, start=1)]
    return Table(str(path), rows)


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{place}: a JSON {type(row).__name__}, not an object")
    return row


def _innermost(
    content: Mapping[str, Any], keys: tuple[str, ...], place: str
) -> Iterator[dict[str, Any]]:
    """Yields the mappings that hold anything but mappings, with the keys that lead to them."""
    if all(isinstance(value, dict) for value in content.values()):
        for key, value in content.items():
            yield from _innermost(value, (*keys, key), place)
        return
    row = {f"key_{depth}": key for depth, key in enumerate(keys, start=1)}
    if clash := sorted(row.keys() & content.keys()):
        raise InputError(
            f"{place}: under {'/'.join(keys)!r} lies a field {clash[0]!r}, which is the name for "
            "the key that leads there; rename the field"
        )
    yield row | content


def _separated(path: pathlib.Path, delimiter: str) -> Table:
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    header: list[str] | None = None
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    # The default, 128 KiB, is less than a long document.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        begin = 1
        for cells in reader:
            line, begin = begin, reader.line_num + 1
            place = f"{path}:{line}"
            if not cells:
                continue
            if header is None:
                header = _header(cells, place)
            elif len(cells) != len(header):
                raise InputError(
                    f"{place}: {len(cells)} columns, the header has {len(header)}: "
                    f"{', '.join(header)}"
                )
            else:
                rows.append(dict(zip(header, cells, strict=True)))
                lines.append(line)
    except csv.Error as error:
        raise InputError(f"{path}:{begin}: {error}") from error
    finally:
        csv.field_size_limit(limit)
    return Table(str(path), rows, lines=lines)


def _header(cells: list[str], place: str) -> list[str]:
    for name in cells:
        if cells.count(name) > 1:
            raise InputError(f"{place}: the header has the column {name!r} twice; rename one")
    return cells


class _ArrowRows(Sequence[dict[str, Any]]):
    """An Arrow table, row by row."""

    def __init__(self, table):
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._table.slice(index, 1).to_pylist()[0]


def _parquet(path: pathlib.Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not parquet ({str(error).splitlines()[0]})") from error
    return Table(str(path), _ArrowRows(table), arrow=table)


READERS: dict[str, Callable[[pathlib.Path], Table]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": functools.partial(_separated, delimiter=","),
    ".tsv": functools.partial(_separated, delimiter="\t"),
    ".parquet": _parquet,
}
