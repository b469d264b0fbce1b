"""A page of sections, as one HTML file that needs no other, and as Markdown."""

import dataclasses
import html
from collections.abc import Iterator, Sequence

from langmerge_jax.reporting.figures import Figure
from langmerge_jax.reporting.table import Table, markdown_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --ground: #ffffff;
  --panel: #f4f6f9; --line: #d8dee6; --accent: #0b62a4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9f0; --soft: #a3afbf; --ground: #12171e;
  --panel: #1b222c; --line: #323c49; --accent: #6cb6f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 76rem; color: var(--ink);
  background: var(--ground); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
p { max-width: 48rem; margin: .5rem 0; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: .875rem; margin: .25rem 0 1rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10.5rem), 1fr));
  gap: .75rem; margin: 1.25rem 0; padding: 0; list-style: none; }
.facts li { background: var(--panel); border-radius: .5rem; padding: .75rem 1rem; }
.facts b { display: block; font-size: 1.75rem; line-height: 1.2; color: var(--accent); }
.facts span { color: var(--soft); font-size: .875rem; }
.table { overflow-x: auto; margin: .4rem 0 .25rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
h3 { font-size: .9rem; margin: 1rem 0 0; }
th, td { padding: .3rem .55rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--ground); }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; }
td small { display: block; color: var(--soft); font-size: .72rem; }
td.long { white-space: normal; text-align: left; min-width: 16rem; }
sup { color: var(--accent); font-weight: 700; padding-left: .1rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.5rem 2.5rem; margin: 1rem 0; align-items: start; }
.beside { display: grid; grid-template-columns: minmax(0, 1fr); }
@media (min-width: 70rem) { .beside { gap: 2.5rem;
  grid-template-columns: minmax(0, max-content) minmax(22rem, 1fr); } }
@media (max-width: 30rem) { table { font-size: .82rem; } th, td { padding: .3rem .35rem; } }
figure { margin: 0; max-width: 30rem; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .875rem; }
pre { background: var(--panel); border-radius: .5rem; padding: .75rem 1rem; overflow-x: auto;
  font-size: .85rem; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --ground: #fff;
  --panel: #fff; --line: #bbb; --accent: #000; }
  body { font-size: 10pt; max-width: none; padding: 0; }
  .facts li { border: 1px solid var(--line); }
  .table { overflow: visible; } table { font-size: 8pt; } th, td { padding: .15rem .35rem; }
  th:first-child { position: static; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); }
  tr, figure, .facts li { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
      title: its heading.
      paragraphs: plain text.
      tables, figures: below the text.
      commands: for a shell, shown last.
    """

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    commands: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """A page; whatever stands in it is plain text and is escaped where it is written.

    Attributes:
      title: of the page.
      lead: paragraphs that say it all.
      facts: (number, what it is), below the lead.
      sections: the rest.
    """

    title: str
    lead: Sequence[str]
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]

    def figures(self) -> Iterator[Figure]:
        """Yields the figures of all sections."""
        for section in self.sections:
            yield from section.figures

    def tables(self) -> Iterator[Table]:
        """Yields the tables of all sections."""
        for section in self.sections:
            yield from section.tables

    def html(self) -> str:
        """Returns the page as HTML with its style and figures inside."""
        facts = "".join(
            f"<li><b>{html.escape(number)}</b><span>{html.escape(what)}</span></li>\n"
            for number, what in self.facts
        )
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<main>\n<h1>{html.escape(self.title)}</h1>\n{_paragraphs(self.lead)}"
            f"<ul class=facts>\n{facts}</ul>\n"
            f"{''.join(map(_section, self.sections))}</main>\n</body>\n</html>\n"
        )

    def markdown(self, folder: str) -> str:
        """Returns the page as Markdown; its figures are the PNG files of `folder`."""
        parts = [f"# {markdown_text(self.title)}", *map(markdown_text, self.lead)]
        for section in self.sections:
            parts += [f"## {section.title}", *map(markdown_text, section.paragraphs)]
            parts += [table.markdown().rstrip() for table in section.tables]
            for figure in section.figures:
                parts.append(f"![{markdown_text(figure.alt)}]({folder}/{figure.name}.png)")
                parts.append(markdown_text(figure.caption))
            if section.commands:
                parts.append(f"```\n{section.commands}\n```")
        return "\n\n".join(parts) + "\n"


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{html.escape(text)}</p>\n" for text in texts)


def _section(section: Section) -> str:
    figures = "".join(
        f'<figure><div role=img aria-label="{html.escape(figure.alt)}">{figure.svg()}</div>'
        f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>\n"
        for figure in section.figures
    )
    tables = "".join(table.html() for table in section.tables)
    if figures:
        figures = f"<div class=figures>\n{figures}</div>\n"
    # On a wide page the figures stand beside the tables.
    both = f"<div class=beside>\n<div>\n{tables}</div>\n{figures}</div>\n"
    return (
        f"<section>\n<h2>{html.escape(section.title)}</h2>\n{_paragraphs(section.paragraphs)}"
        + (both if tables and figures else tables + figures)
        + (f"<pre>{html.escape(section.commands)}</pre>\n" if section.commands else "")
        + "</section>\n"
    )
