"""A table looks right wherever it is shown."""

import html.parser
import re

import pytest

from langmerge_jax.reporting.table import WIDTH, Cell, Table


@pytest.fixture
def table():
    rows = {
        "base": [Cell("0.5000", detail="0.4–0.6"), Cell("10.0 %", mark="?")],
        "a|b_c": [Cell("0.6000", best=True, mark="<"), Cell("9.0 %")],
    }
    return Table("Scores & more", "variant", ["en", "x<y"], rows, ["<: worse"])


def test_terminal_aligns_figures_and_lets_marks_hang(table):
    assert table.text() == (
        "Scores & more\n"
        "variant      en       x<y\n"
        "base     0.5000    10.0 %?\n"
        "a|b_c    0.6000*<   9.0 %\n"
        "*: best of the column\n"
        "<: worse\n"
    )


def test_terminal_goes_on_below_after_80_columns():
    cells = [Cell(f"0.{i:04d}", best=i % 2 == 0) for i in range(30)]
    table = Table("Wide", "variant", [f"lang{i}" for i in range(30)], {"one": cells})
    lines = table.text().splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert re.findall(r"lang\d+", table.text()) == [f"lang{i}" for i in range(30)]
    assert re.findall(r"0\.\d{4}", table.text()) == [f"0.{i:04d}" for i in range(30)]


def test_markdown_has_a_cell_for_each_column_and_escapes_bars(table):
    title, _, *lines = table.markdown().splitlines()
    assert title == "### Scores &amp; more"
    assert lines[0] == "| variant | en | x&lt;y |"
    assert lines[2] == "| base | 0.5000 (0.4–0.6) | 10.0 %? |"
    assert lines[3] == r"| a\|b_c | **0.6000**&lt; | 9.0 % |"


def test_latex_escapes_what_it_would_read_as_commands(table):
    text = table.latex()
    assert r"\caption{Scores \& more. \textless{}: worse.}" in text
    assert r"a|b\_c & \textbf{0.6000}\textsuperscript{\textless{}} & 9.0 \% \\" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_closed_and_escaped():
    script = "<script>alert(1)</script>"
    table = Table(script, script, [script], {script: [Cell(script, detail=script)]}, [script])
    reader = Reader()
    reader.feed(table.html())
    assert reader.open == []
    assert "<script" not in table.html()
    assert reader.text.count(script) == 7
