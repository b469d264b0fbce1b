"""The report of a finished run: complete, self-contained, and rendered by a browser."""

import html.parser
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from langmerge_jax.files import read_jsonl, write_jsonl
from langmerge_jax.reporting.report import write_report
from tests.doors import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


class Page(html.parser.HTMLParser):
    """What stands in a page: tags that were left open, addresses, and labels of pictures."""

    EMPTY = ("meta", "path", "use", "rect", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.labels, self.tags, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)
        found = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if found.get("role") == "img":
            self.labels.append(found["aria-label"])

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def workdir(finished, tmp_path_factory):
    return shutil.copytree(finished[0], tmp_path_factory.mktemp("runs") / "reported")


@pytest.fixture(scope="module")
def page(workdir):
    return Page(write_report(workdir).read_text(encoding="utf-8"))


def test_the_page_needs_no_other_file(page):
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    # Within an SVG, marks are used by name.
    assert all(address.startswith("#") for address in page.addresses)


def test_every_part_is_there(page, workdir):
    for title in (
        "What each variant scores",
        "What it saves",
        "What an update changes",
        "The rival: route by language",
        "How small the merge can be",
        "How alike the adapters are",
        "How training went",
        "Recipe and lineage",
        "How to serve it",
    ):
        assert title in page.text
    scores = json.loads((workdir / "scores.json").read_text())
    for row in scores:
        if row["metric"] == "macro_f1":
            assert f"{row['value']:.4f}" in page.text
    costs = json.loads((workdir / "costs.json").read_text())
    for row in costs["rows"]:
        assert f"{row['device_seconds']:.1f}" in page.text
        assert f"{100 * row['measured_saving']:.1f} %" in page.text


def test_every_figure_says_what_it_shows_and_stands_beside_as_png(page, workdir):
    pictures = sorted(path.stem for path in (workdir / "figures").iterdir())
    assert pictures == [
        "against_combined",
        "cosines",
        "costs",
        "losses",
        "matrix",
        "ranks",
        "sign_conflicts",
    ]
    assert len(page.labels) == page.tags.count("svg") == len(pictures)
    assert all(re.search(r"\d", label) for label in page.labels)
    markdown = (workdir / "report.md").read_text(encoding="utf-8")
    for name in pictures:
        assert f"](figures/{name}.png)" in markdown
        with Image.open(workdir / "figures" / f"{name}.png") as picture:
            # Drawn, on white.
            assert len(picture.convert("L").getcolors()) > 3
            assert picture.getpixel((0, 0))[:3] == (255, 255, 255)


def test_text_of_rows_and_predictions_is_escaped(workdir, tmp_path):
    workdir = shutil.copytree(workdir, tmp_path / "hostile")
    hostile = "<script>alert('x')</script> | **bold**"
    for variant, prediction in (("tuned", hostile), ("combined", "positive")):
        path = workdir / "predictions" / variant / "en.jsonl"
        rows = read_jsonl(path)
        write_jsonl(path, [row | {"output": prediction} for row in rows])
    path = workdir / "test" / "en.jsonl"
    write_jsonl(path, [row | {"text": hostile} for row in read_jsonl(path)])
    text = write_report(workdir).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<script" not in (workdir / "report.md").read_text(encoding="utf-8")
    assert Page(text).text.count(hostile) >= 2


def test_a_run_without_updates_and_combined_is_reported_too(workdir, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    shutil.copy(workdir / "config.json", small)
    for name in ("scores.json", "matrix.json"):
        rows = json.loads((workdir / name).read_text())
        kept = [r for r in rows if r.get("variant") not in ("combined", "tuned")]
        (small / name).write_text(json.dumps(kept))
    page = Page(write_report(small).read_text(encoding="utf-8"))
    assert "the best of 10 on these test rows" in page.text
    assert "What it saves" not in page.text


def with_baselines(workdir, home, values):
    """A copy of a workdir in which the n-gram baseline lies by `values` from `combined`."""
    shutil.copytree(workdir, home)
    scores = json.loads((home / "scores.json").read_text())
    rows = [
        row | {"variant": name, "value": row["value"] + beyond}
        for row in scores
        if (row["variant"], row["metric"]) == ("combined", "macro_f1")
        for name, beyond in (("majority", -0.1), ("char n-gram", values.get(row["language"], -0.1)))
    ]
    (home / "baselines.json").write_text(json.dumps({"inputs": "", "scores": rows}))
    write_report(home)
    return (home / "report.md").read_text(encoding="utf-8")


def test_where_combined_beats_no_baseline_the_lead_says_cannot_judge(workdir, tmp_path):
    said = with_baselines(workdir, tmp_path / "one", {"all": 0.1, "ja": 0})
    scores = json.loads((workdir / "scores.json").read_text())
    values = {
        r["language"]: r["value"]
        for r in scores
        if (r["variant"], r["metric"]) == ("combined", "macro_f1")
    }
    lead = said.partition("## ")[0]
    assert (
        "Cannot judge: combined scores no better than what needs no language model on "
        f"all languages together ({values['all']:.3f}; char n-gram {values['all'] + 0.1:.3f}), "
        f"ja ({values['ja']:.3f}; char n-gram {values['ja']:.3f}); "
    ) in lead
    assert lead.count("Cannot judge") == 1
    assert "Cannot judge" not in with_baselines(workdir, tmp_path / "none", {})


def test_the_door_says_where_the_report_is_and_what_it_lacks(workdir, tmp_path):
    def door(*flags):
        command = [sys.executable, "-m", "langmerge_jax.report", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    result = door(f"--workdir={workdir}")
    assert (result.returncode, result.stdout) == (0, f"report: {workdir / 'report.html'}\n")
    for flags, words in (((), "--workdir is missing"), ((f"--workdir={tmp_path}",), "no config")):
        result = door(*flags)
        assert result.returncode == 2
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_without_scrolling_sideways(width, dark, page, workdir, tmp_path):
    # A frame, as a browser's own window is never as narrow as a telephone.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<body style="margin:0"><iframe id=f src="{(workdir / "report.html").as_uri()}" '
        f'style="border:0;width:{width}px;height:1500px"></iframe><p id=p></p><script>'
        "f.onload = () => { const d = f.contentDocument, e = d.documentElement;"
        "p.textContent = [e.clientWidth, e.scrollWidth, e.scrollHeight, "
        "d.querySelectorAll('svg').length, getComputedStyle(d.body).backgroundColor].join(' ')"
        "}</script></body>"
    )

    def browse(*flags):
        command = [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            *flags,
            frame.as_uri(),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    found = re.search(r'<p id="p">([^<]+)</p>', browse("--dump-dom").stdout)[1]
    window, wide, high, figures, red, green, blue = map(int, re.findall(r"\d+", found))
    # But for the scroll bar.
    assert width - 20 <= window == wide <= width
    assert 1500 < high < 20_000
    assert figures == 7
    assert (red + green + blue < 120) == dark
    picture = tmp_path / "page.png"
    browse(f"--window-size={max(width, 500)},1500", f"--screenshot={picture}")
    with Image.open(picture) as image:
        shown = np.asarray(image.convert("L"))[:, :width]
    # Text and figures on the ground, not an empty page.
    assert np.mean(np.abs(shown.astype(int) - int(np.median(shown))) > 60) > 0.01
