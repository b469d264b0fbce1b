"""Which rows of a data set a run takes, split by split."""

import contextlib
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from langmerge_jax.data.examples import Example
from langmerge_jax.data.fields import Row
from langmerge_jax.data.rows import MissingSplit, Table, read_table
from langmerge_jax.errors import InputError

logger = logging.getLogger(__name__)

# Each keeps clear of those before it.
SPLITS = ("test", "validation", "train")
# Rows to instruct a base by: a split of the run, the last of them, if shares name it.
INSTRUCT = "instruct"
# Beginnings of paths whose splits are told apart by whoever holds the data.
HOSTED = ("hf:", "tfds:")


class Reader(Protocol):
    """Makes examples of rows; a task does."""

    def read(self, row: Row, language: str) -> list[Example]:
        """Returns the examples of a row; raises InputError for a bad one."""


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """Which rows to read.

    Attributes:
      path: see `rows.read_table`.
      fields: {part of an example: field}, see `fields.Row`.
      language_field: column with the language, for rows that mix them; "" for none.
      names: {language: what the data set calls it} where that is not its code.
      splits: {split: what the data set calls it}. Splits of one name part its rows, see `shares`.
      shares: {split: share} by which rows that several splits have in common are shared out, by
        the hash of the row or of its group: the same in every language. With a share for
        `instruct` no row of that split is in another one.
      rows: {split: how many to draw}; 0 takes all.
      seed: of the draws.
      skip_bad: leave bad rows out instead of refusing them.
    """

    path: str
    fields: Mapping[str, str]
    language_field: str
    names: Mapping[str, str]
    splits: Mapping[str, str]
    shares: Mapping[str, float]
    rows: Mapping[str, int]
    seed: int
    skip_bad: bool = False


@dataclasses.dataclass
class Counts:
    """What was found on the way to the rows of a split.

    Attributes:
      wanted: rows asked for; 0 for all.
      taken: rows.
      repeated: rows left out because the split has them already.
      elsewhere: rows left out because another split has them.
      bad: rows left out because they could not be read.
    """

    wanted: int
    taken: int = 0
    repeated: int = 0
    elsewhere: int = 0
    bad: int = 0

    def said(self) -> str:
        """Returns what is noteworthy; "" if nothing is."""
        parts = []
        if self.wanted > self.taken:
            parts.append(f"{self.taken} rows taken of {self.wanted} asked for")
        for count, why in (
            (self.repeated, "occur twice"),
            (self.elsewhere, "another split has, or others of their article"),
            (self.bad, "cannot be read"),
        ):
            if count:
                parts.append(f"{count} left out that {why}")
        return ", ".join(parts)


class Source:
    """Draws the rows of a run.

    No row is in two splits, nor twice in one: rows are the same if what they ask is, but for
    spacing and case. Everything drawn depends on the seed, the language, the split and the data
    alone, so every machine draws the same.

    Args:
      spec: what to read.
      reader: makes examples of rows.

    Attributes:
      counts: {(language, split): Counts} of what was drawn.
    """

    def __init__(self, spec: SourceSpec, reader: Reader):
        self._spec, self._reader = spec, reader
        self._splits = (*SPLITS, INSTRUCT) if INSTRUCT in spec.shares else SPLITS
        if unknown := set(spec.shares) - set(self._splits):
            known = ", ".join((*SPLITS, INSTRUCT))
            raise InputError(f"data.shares names {min(unknown)!r}; there are {known}")
        self.counts: dict[tuple[str, str], Counts] = {}

    @functools.cache  # noqa: B019 (a source lives as long as its run)
    def draw(self, language: str, split: str) -> list[Example]:
        """Returns the wanted number of rows of a split: `test`, `validation`, `train`, or one more.

        The rows come in the order drawn, or if fewer are there than wanted, in their own.

        Raises:
          InputError: for a split without rows, or a bad row; it names file and line.
        """
        before = self._splits[: self._splits.index(split)] if split in self._splits else ()
        held = self._held(language, before)
        found = self._take(language, split, self._spec.rows.get(split, 0), held)
        if not found:
            name = self._read(language, self._names(language).get(split, split)).name
            why = self.counts[language, split].said()
            raise InputError(
                f"{name}: the {split} split of {language!r} has no rows" + (why and f": {why}")
            )
        return found

    def further(self, language: str, count: int) -> list[Example]:
        """Returns up to `count` training rows, 0 takes all, beyond those that `draw` takes.

        Raises:
          InputError: if there are none.
        """
        had = frozenset(row.asked for row in self.draw(language, "train"))
        held = self._held(language, [x for x in self._splits if x != "train"])
        found = self._take(language, "train", count, held, name="update", had=had)
        if not found:
            raise InputError(
                f"language {language!r}: {self._spec.path} has no rows beyond those trained on "
                "already; give new rows by --data="
            )
        return found

    def without(self, rows: Sequence[Example], language: str) -> list[Example]:
        """Returns those of rows from elsewhere that no split has, each once."""
        had = {row.asked for row in self.draw(language, "train")}
        held = self._held(language, [x for x in self._splits if x != "train"])
        kept = {
            row.asked: row
            for row in reversed(rows)
            if row.asked not in had and not held & _keys(row)
        }
        found = list(reversed(kept.values()))
        if len(found) < len(rows):
            left_out = len(rows) - len(found)
            logger.warning(
                "%s: %d of %d new rows left out that occur twice or are there already",
                *(language, left_out, len(rows)),
            )
        return found

    def _held(self, language: str, splits: Sequence[str]) -> set[str]:
        """What rows of these splits keep others from; those that the data has not, nothing."""
        held = set()
        for split in splits:
            with contextlib.suppress(MissingSplit):
                held |= {key for example in self.draw(language, split) for key in _keys(example)}
        return held

    def _take(
        self,
        language: str,
        split: str,
        wanted: int,
        held: set[str],
        *,
        name: str = "",
        had: frozenset[str] = frozenset(),
    ) -> list[Example]:
        """Takes rows of a split.

        Args:
          held: keys of rows that are not to be taken, see `_keys`.
          name: under which they are counted, if it is not that of the split.
          had: what rows ask that are passed over without being counted.
        """
        names = self._names(language)
        table = self._read(language, names.get(split, split))
        sharing = self._sharing(split, names)
        counts = self.counts[language, name or split] = Counts(wanted)
        order = np.arange(len(table))
        if wanted:
            key = f"{self._spec.seed}/{language}/{split}".encode()
            draw = np.random.default_rng(list(hashlib.sha256(key).digest()))
            order = draw.permutation(len(table))
        found: dict[str, tuple[int, Example]] = {}
        for i, example in self._examples(table, order, language, counts):
            if len(sharing) > 1 and self._owner(example, sharing) != split:
                continue
            asked = example.asked
            if asked in had:
                continue
            if asked in found or held & _keys(example):
                counts.repeated += asked in found
                counts.elsewhere += asked not in found
                continue
            found[asked] = (i, example)
            if len(found) == wanted:
                break
        else:  # All there are, in their own order.
            found = dict(sorted(found.items(), key=lambda item: item[1][0]))
        counts.taken = len(found)
        if said := counts.said():
            logger.warning("%s, %s: %s", language, name or split, said)
        return [example for _, example in found.values()]

    def _sharing(self, split: str, names: Mapping[str, str]) -> list[str]:
        """The splits that have their rows in common with this one, and itself; none for one more.

        Raises:
          InputError: if one of them has no share.
        """
        if split not in (*SPLITS, INSTRUCT):
            return []
        parts = dict.fromkeys((*self._splits, split))
        sharing = [x for x in parts if names[x] == names[split]]
        for x in sharing if len(sharing) > 1 else ():
            if x not in self._spec.shares:
                raise InputError(
                    f"data.shares has no {x!r}, but {', '.join(sharing)} have their rows in "
                    "common; give it a share"
                )
        return sharing

    @functools.cache  # noqa: B019
    def _names(self, language: str) -> dict[str, str]:
        """What the data calls each split. Those of one name share its rows."""
        names = {x: x for x in (*SPLITS, INSTRUCT)} | dict(self._spec.splits)
        if not self._spec.path.startswith(HOSTED) and "{split}" not in self._spec.path:
            names = dict.fromkeys(names, "all")  # One file.
        if names["test"] == names["validation"]:
            return names
        try:
            test = self._read(language, names["test"])
        except MissingSplit:  # Said where its rows are needed.
            return names
        if self._unanswered(test):
            logger.warning(
                "%s: no row has an answer; test and validation rows are drawn from %s, disjoint",
                *(test.name, names["validation"]),
            )
            names["test"] = names["validation"]
        return names

    @functools.cache  # noqa: B019
    def _read(self, language: str, name: str) -> Table:
        spec = self._spec
        return read_table(
            spec.path,
            split=name,
            language=spec.names.get(language, language),
            language_field=spec.language_field,
        )

    def _unanswered(self, table: Table) -> bool:
        """Whether no row says what is right, as where a publisher keeps the keys of the test."""
        rows = (Row(table[i], table.place(i), self._spec.fields) for i in range(len(table)))
        return all(row.get("target") in ("", None) for row in rows)

    def _examples(
        self, table: Table, order: np.ndarray, language: str, counts: Counts
    ) -> Iterator[tuple[int, Example]]:
        """Yields the examples of rows, each with the number of its row."""
        for i in map(int, order):
            try:
                row = Row(table[i], table.place(i), self._spec.fields)
                examples = self._reader.read(row, language)
            except InputError as error:
                if not self._spec.skip_bad:
                    raise InputError(f"{error}; data.skip_bad=True leaves bad rows out") from error
                counts.bad += 1
                continue
            yield from ((i, example) for example in examples)

    def _owner(self, example: Example, splits: Sequence[str]) -> str:
        """Which of the splits that share rows has this one."""
        key = f"{self._spec.seed}/{example.group or example.asked}".encode()
        place = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64
        shares = np.array([self._spec.shares[x] for x in splits])
        ends = np.cumsum(shares) / shares.sum()
        return splits[min(int(np.searchsorted(ends, place, side="right")), len(splits) - 1)]


def _keys(example: Example) -> set[str]:
    """By what a row keeps others out of other splits: what it asks, and its article."""
    return {example.asked, *([f"group {example.group}"] if example.group else [])}
