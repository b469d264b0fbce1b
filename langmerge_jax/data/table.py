"""Rows of one split, and where each of them lies."""

import bisect
import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from langmerge_jax.errors import InputError

# How many of a column's values a message lists.
LISTED = 20


class MissingSplit(InputError):
    """The data has no such split."""


class Table(Sequence[dict[str, Any]]):
    """Rows as they lie in a file or a data set, before any task looks at them.

    A row is turned into Python values when it is asked for: of a data set of millions only the rows
    that are drawn cost anything. Bytes become text.

    Attributes:
      name: the file, or `data set[split]`.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[Mapping[str, Any]],
        *,
        lines: Sequence[int] | None = None,
        arrow=None,
    ):
        """Wraps rows that are read already, or that are read by index.

        Args:
          name: what to call them in messages.
          rows: the rows.
          lines: the line of the file that each row lies on; None if rows have no lines.
          arrow: the same rows as an Arrow table, where there is one; `where` then looks at its
            column and leaves the rows alone.
        """
        self.name = name
        self._rows = rows
        self._lines = lines
        self._arrow = arrow
        self._kept: Sequence[int] | np.ndarray = range(len(rows))

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {}
        for field, value in self._rows[int(self._kept[index])].items():
            try:
                row[field] = _plain(value)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self.place(index)}: the field {field!r} holds bytes that are not UTF-8; "
                    "only text can be read"
                ) from error
        return row

    def place(self, index: int) -> str:
        """Tells where a row lies: `file:LINE`, or `name: row N`, counted from 1 before `where`."""
        return self._place(int(self._kept[index]))

    def where(self, field: str, value: str) -> "Table":
        """Keeps the rows whose `field` is `value`; their places stay what they were.

        Raises:
          InputError: if there is no such field, or no such row; it lists what there is.
        """
        import pyarrow.compute as pc

        column = self._text_column(field)
        found = np.flatnonzero(pc.fill_null(pc.equal(column, value), False))
        if not len(found):
            values = sorted(pc.unique(column.drop_null()).to_pylist())
            # A column of long texts, named by mistake, must not fill the screen.
            listed = ", ".join(f"{v!r:.40}" for v in values[:LISTED])
            more = f" and {len(values) - LISTED} more" if len(values) > LISTED else ""
            raise InputError(
                f"{self.name}: no row has {value!r} in the column {field!r}; "
                f"it holds {listed or 'nothing'}{more}"
            )
        table = copy.copy(self)
        table._kept = np.asarray(self._kept)[found]
        return table

    def _place(self, number: int) -> str:
        if self._lines is None:
            return f"{self.name}: row {number + 1}"
        return f"{self.name}:{self._lines[number]}"

    def _text_column(self, field: str):
        """The values of a field over the kept rows, as an Arrow column of strings."""
        import pyarrow as pa

        if self._arrow is None:
            values = []
            for number in self._kept:
                row = self._rows[int(number)]
                if field not in row:
                    raise InputError(
                        f"{self._place(number)}: no column {field!r}; there are {', '.join(row)}"
                    )
                value = _plain(row[field])
                values.append(None if value is None else str(value))
            return pa.array(values, pa.string())
        if field not in self._arrow.column_names:
            names = ", ".join(self._arrow.column_names)
            raise InputError(f"{self.name}: no column {field!r}; there are {names}")
        column = self._arrow.column(field)
        try:
            column = column.cast(pa.string())
        except pa.ArrowException as error:
            raise InputError(
                f"{self.name}: the column {field!r} holds {column.type}, not text"
            ) from error
        return column if len(self) == len(self._rows) else column.take(pa.array(self._kept))


class Joined(Table):
    """Several tables as one, in which each row keeps its own place.

    Args:
      name: what to call them together in messages.
      parts: the tables, in their order.
    """

    def __init__(self, name: str, parts: Sequence[Table]):
        self._parts = parts
        self._starts = [0, *itertools.accumulate(map(len, parts))]
        # The rows themselves stay with the parts.
        super().__init__(name, range(self._starts[-1]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, inner = self._find(int(self._kept[index]))
        return part[inner]

    def _find(self, number: int) -> tuple[Table, int]:
        """The part that has a row, and its number there."""
        part = bisect.bisect_right(self._starts, number) - 1
        return self._parts[part], number - self._starts[part]

    def _place(self, number: int) -> str:
        part, inner = self._find(number)
        return part.place(inner)

    def _text_column(self, field: str):
        import pyarrow as pa

        columns = [part._text_column(field) for part in self._parts]
        # The column of a table that has an Arrow table is in chunks already.
        chunks = [chunk for x in columns for chunk in getattr(x, "chunks", [x])]
        return pa.chunked_array(chunks, pa.string()).take(pa.array(self._kept))


def _plain(value: Any) -> Any:
    """Turns bytes, numpy values and what is within lists and mappings into Python's own values."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return value
