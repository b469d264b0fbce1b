"""A table of cells, and how it looks on a terminal, as Markdown, LaTeX and HTML."""

import csv
import dataclasses
import html
import io
import re
import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 80
# Characters from which a cell of a page is set as running text.
_PROSE = 40
_LATEX = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}"}
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
      text: what it says.
      best: whether it is the best of its column.
      mark: a character after the text, explained in the table's notes.
      detail: what is shown where there is room, such as an interval.
    """

    text: str
    best: bool = False
    mark: str = ""
    detail: str = ""

    def plain(self) -> str:
        """Returns the cell for a terminal."""
        return self.text + ("*" if self.best else "") + self.mark

    def markdown(self) -> str:
        """Returns the cell for Markdown."""
        text = markdown_text(self.text)
        text = f"**{text}**" if self.best else text
        detail = f" ({markdown_text(self.detail)})" if self.detail else ""
        return text + markdown_text(self.mark) + detail

    def latex(self) -> str:
        """Returns the cell for LaTeX."""
        text = self.text.translate(_LATEX)
        text = rf"\textbf{{{text}}}" if self.best else text
        mark = rf"\textsuperscript{{{self.mark.translate(_LATEX)}}}" if self.mark else ""
        detail = rf" {{\scriptsize ({self.detail.translate(_LATEX)})}}" if self.detail else ""
        return text + mark + detail

    def html(self, *, prose: bool) -> str:
        """Returns the cell for HTML, aligned as running text or as a figure."""
        text = html.escape(self.text)
        text = f"<strong>{text}</strong>" if self.best else text
        mark = f"<sup>{html.escape(self.mark)}</sup>" if self.mark else ""
        detail = f"<small>{html.escape(self.detail)}</small>" if self.detail else ""
        return f"<td{' class=long' if prose else ''}>{text}{mark}{detail}</td>"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under named columns.

    Attributes:
      title: above it.
      head: name of the first column.
      columns: names of the others.
      rows: {row name: a cell for each column}.
      notes: below it, such as what a mark means.
    """

    title: str
    head: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]
    notes: Sequence[str] = ()

    def _prose(self) -> list[bool]:
        """Which columns hold running text."""
        return [
            any(len(row[i].text) > _PROSE for row in self.rows.values())
            for i in range(len(self.columns))
        ]

    def text(self) -> str:
        """Returns the table for a terminal of 80 columns; many columns continue below.

        Marks hang to the right of the figures, so that these stay below each other.
        """
        first = max(map(len, [self.head, *self.rows]))
        hang = [
            max((len(row[i].plain()) - len(row[i].text) for row in self.rows.values()), default=0)
            for i in range(len(self.columns))
        ]
        widths = [
            max(len(column), *(len(row[i].text) for row in self.rows.values())) + 2
            for i, column in enumerate(self.columns)
        ]
        lines, start = [self.title], 0
        while start < len(self.columns):
            end, room = start, WIDTH - first
            while end < len(self.columns) and (end == start or widths[end] + hang[end] <= room):
                room -= widths[end] + hang[end]
                end += 1
            shown = range(start, end)
            heads = (self.columns[i].rjust(widths[i]) + " " * hang[i] for i in shown)
            lines.append(self.head.ljust(first) + "".join(heads))
            for name, row in self.rows.items():
                cells = (
                    row[i].text.rjust(widths[i]) + row[i].plain()[len(row[i].text) :].ljust(hang[i])
                    for i in shown
                )
                lines.append(name.ljust(first) + "".join(cells))
            start = end
        best = any(cell.best for row in self.rows.values() for cell in row)
        notes = [*(["*: best of the column"] if best else []), *self.notes]
        lines += [line for note in notes for line in textwrap.wrap(note, WIDTH)]
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        lines = [
            f"### {markdown_text(self.title)}",
            "",
            "| " + " | ".join(map(markdown_text, [self.head, *self.columns])) + " |",
            "|---|" + "---:|" * len(self.columns),
        ]
        for name, row in self.rows.items():
            cells = [markdown_text(name), *(cell.markdown() for cell in row)]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, *(f"\n{markdown_text(note)}" for note in self.notes)]) + "\n"

    def latex(self) -> str:
        """Returns the table for LaTeX with the package booktabs."""
        kinds = "".join(r"p{0.5\textwidth}" if long else "r" for long in self._prose())
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{'. '.join([self.title, *self.notes]).translate(_LATEX)}.}}",
            rf"\begin{{tabular}}{{l{kinds}}}",
            r"\toprule",
            " & ".join(name.translate(_LATEX) for name in [self.head, *self.columns]) + r" \\",
            r"\midrule",
        ]
        for name, row in self.rows.items():
            cells = [name.translate(_LATEX), *(cell.latex() for cell in row)]
            lines.append(" & ".join(cells) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"

    def csv(self) -> str:
        """Returns the table as CSV, the details, which are intervals, in columns of their own."""
        detailed = [
            i for i in range(len(self.columns)) if any(row[i].detail for row in self.rows.values())
        ]
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow([self.head, *self.columns, *(f"{self.columns[i]} 95 %" for i in detailed)])
        for name, row in self.rows.items():
            texts = [cell.text for cell in row]
            writer.writerow([name.strip(), *texts, *(row[i].detail for i in detailed)])
        return lines.getvalue()

    def slug(self) -> str:
        """Returns the title, up to its first comma or colon, as the name of a file."""
        return re.sub(r"\W+", "-", re.split("[,:]", self.title)[0].lower()).strip("-")

    def html(self) -> str:
        """Returns the table for HTML, in a frame of its own that scrolls where it is too wide."""
        heads = "".join(
            f'<th scope="col">{html.escape(x)}</th>' for x in [self.head, *self.columns]
        )
        prose = self._prose()
        rows = "".join(
            f'<tr><th scope="row">{html.escape(name)}</th>'
            + "".join(cell.html(prose=long) for cell, long in zip(row, prose, strict=True))
            + "</tr>\n"
            for name, row in self.rows.items()
        )
        notes = "".join(f"<p class=note>{html.escape(note)}</p>\n" for note in self.notes)
        return (
            # The title does not scroll with the table.
            f"<h3>{html.escape(self.title)}</h3>\n"
            f'<div class=table tabindex=0 role=region aria-label="{html.escape(self.title)}">\n'
            f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n{notes}"
        )


def markdown_text(text: str) -> str:
    """Returns a text with all that Markdown would not show as it is escaped.

    Underscores within words are shown.
    """
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(text, quote=False))
