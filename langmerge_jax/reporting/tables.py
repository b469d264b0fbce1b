"""The score tables of a run: on the terminal, as Markdown and as CSV. Reads files only."""

import csv
import dataclasses
import io
import json
import pathlib

from langmerge_jax.files import write_text

WIDTH = 80
_TITLES = {"macro_f1": "Macro F1", "precision": "Macro precision", "recall": "Macro recall"}


@dataclasses.dataclass(frozen=True)
class Table:
    """Values by row and column; the best of each column is marked.

    Attributes:
      title: above it.
      head: name of the first column.
      rows: {row name: {column: value}}.
      beside: {row name: {column: value}}, shown below and never marked best.
    """

    title: str
    head: str
    rows: dict[str, dict[str, float]]
    beside: dict[str, dict[str, float]]

    def columns(self) -> list[str]:
        return list(next(iter(self.rows.values())))

    def _cell(self, name: str, column: str, mark: str) -> str:
        row = self.rows.get(name) or self.beside[name]
        # As shown: two rows that print alike are marked alike.
        text = f"{row[column]:.4f}"
        best = max(f"{values[column]:.4f}" for values in self.rows.values())
        return mark.format(text) if name in self.rows and text == best else text

    def text(self) -> str:
        """Returns the table for a terminal of 80 columns; many languages continue below."""
        names = [*self.rows, *self.beside]
        first = max(map(len, [self.head, *names]))
        per_block = max(1, (WIDTH - first) // 8)
        lines = [self.title]
        for start in range(0, len(self.columns()), per_block):
            columns = self.columns()[start : start + per_block]
            lines.append(self.head.ljust(first) + "".join(f"{c[:7]:>7} " for c in columns))
            for name in names:
                cells = (self._cell(name, column, "{}*") for column in columns)
                cells = (f"{cell:>7} " if "*" not in cell else f"{cell:>8}" for cell in cells)
                lines.append(name.ljust(first) + "".join(cells))
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def markdown(self) -> str:
        """Returns the table as Markdown, the best of each column in bold."""
        columns = self.columns()
        lines = [
            f"### {self.title}",
            "",
            "| " + " | ".join([self.head, *columns]) + " |",
            "|---|" + "---:|" * len(columns),
        ]
        for name in [*self.rows, *self.beside]:
            cells = [self._cell(name, column, "**{}**") for column in columns]
            lines.append("| " + " | ".join([name, *cells]) + " |")
        return "\n".join(lines) + "\n"


def _read(path: pathlib.Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def _pivot(rows: list[dict], key: str, metric: str, names: dict[str, str]):
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["metric"] == metric:
            name = names.get(row[key], row[key])
            table.setdefault(name, {})[row["language"]] = row["value"]
    return table


def write_tables(workdir: pathlib.Path) -> str:
    """Writes `scores.md` and `scores.csv`; returns what to print.

    Args:
      workdir: of a run with `scores.json` and `matrix.json`, and perhaps `tuning.json` and
        `ngram.json`.
    """
    scores, matrix = _read(workdir / "scores.json"), _read(workdir / "matrix.json")
    names = {}
    if (workdir / "tuning.json").exists():
        names["tuned"] = "tuned " + json.loads((workdir / "tuning.json").read_text())["chosen"]
    ngrams = _read(workdir / "ngram.json") if (workdir / "ngram.json").exists() else []
    sizes = {row["n"] for row in scores if row["language"] != "all"}
    n = f"n = {' to '.join(map(str, sorted({min(sizes), max(sizes)})))} a language"
    tables = [
        Table(
            f"{title}, {n}; all: mean over languages",
            "variant",
            _pivot(scores, "variant", metric, names),
            _pivot(ngrams, "variant", metric, {}),
        )
        for metric, title in _TITLES.items()
    ]
    adapters = Table(
        f"Macro F1 of each language's adapter on each language, {n}",
        "adapter",
        _pivot(matrix, "adapter", "macro_f1", {}),
        {},
    )
    write_text(workdir / "scores.md", "\n".join(table.markdown() for table in [*tables, adapters]))
    lines = io.StringIO()
    writer = csv.DictWriter(lines, ["variant", "language", "metric", "value", "n"])
    writer.writeheader()
    writer.writerows(scores)
    write_text(workdir / "scores.csv", lines.getvalue())
    return f"{tables[0].text()}\n{adapters.text()}"
