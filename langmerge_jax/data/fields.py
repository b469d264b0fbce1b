"""Where in a source's row each part of an example lies."""

from collections.abc import Iterator, Mapping
from typing import Any

from langmerge_jax.errors import InputError


class Row:
    """A row as its source has it, asked for its parts by what they mean.

    Args:
      values: the row.
      place: where it lies, for messages.
      fields: {part: field}. A field is a column's name; `a.b` is the field b of the mapping, or of
        each mapping of the list, in the column a; `a,b` are several columns as one list; of `a|b`
        the first that the row has is taken. `` is none.
    """

    def __init__(self, values: Mapping[str, Any], place: str, fields: Mapping[str, str]):
        self._values, self.place, self._fields = values, place, fields

    def get(self, part: str) -> Any:
        """Returns a part as it is, None if the row has none."""
        for field in self._fields.get(part, "").split("|"):
            columns = [_follow(self._values, x.strip().split(".")) for x in field.split(",")]
            if all(x is not None for x in columns):
                return columns if "," in field else columns[0]
        return None

    def name(self) -> str:
        """Returns the row's id, or its place if it has none."""
        found = self.get("id")
        return self.place if found in (None, "") else str(found)

    def text(self, part: str) -> str:
        """Returns a part that is a text.

        Raises:
          InputError: if it is missing, something else, or empty.
        """
        return self.as_text(part, self.get(part))

    def texts(self, part: str) -> list[str]:
        """Returns a part that is a list of texts, or one text.

        Raises:
          InputError: as for `text`.
        """
        found = self.get(part)
        return [self.as_text(part, x) for x in (found if isinstance(found, list) else [found])]

    def as_text(self, part: str, value: Any) -> str:
        """Returns a value of a part, which has to be a text with something in it."""
        if not isinstance(value, str):
            raise InputError(
                f"{self.place}: the field {self._fields.get(part, part)!r} is missing or no text; "
                f"the row has {sorted(self._values)}"
            )
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise InputError(
                f"{self.place}: the field {self._fields.get(part, part)!r} has half of a character "
                "(a lone surrogate); write the whole one"
            )
        if not value.strip():
            raise InputError(f"{self.place}: the field {self._fields[part]!r} is empty")
        return value

    def refused(self, what: str) -> InputError:
        """Returns an error that names the row."""
        return InputError(f"{self.place}: {what}")

    def each(self, parts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields the rows within this row, where parts are lists, side by side.

        Args:
          parts: {part: value}; a value that is no list belongs to each.

        Raises:
          InputError: if the lists differ in length, or are empty.
        """
        lengths = {part: len(x) for part, x in parts.items() if isinstance(x, list)}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{count} of {self._fields[x]!r}" for x, count in lengths.items())
            raise self.refused(f"lists that do not match: {said}")
        if empty := [part for part, length in lengths.items() if not length]:
            raise self.refused(f"the field {self._fields[empty[0]]!r} is empty")
        for i in range(max(lengths.values(), default=1)):
            yield {part: x[i] if part in lengths else x for part, x in parts.items()}


def _follow(value: Any, path: list[str]) -> Any:
    """What lies at a path; of a list, what lies there in each of its items."""
    for number, key in enumerate(path):
        if isinstance(value, list):
            return [_follow(x, path[number:]) for x in value]
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value
