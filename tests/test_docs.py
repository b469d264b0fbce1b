"""The demo page and the README say what the committed scores say."""

import json
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LANGUAGES = ("en", "de", "fr", "ja", "zh", "all")


def rows(text):
    """Table rows by first cell; those of the page's first two tables have different ones."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    found = {}
    for name, *cells in lines:
        found.setdefault(name.strip(), [cell.strip(" *") for cell in cells])
    return found


@pytest.fixture
def seeds():
    return list(json.loads((DOCS / "demo_scores.json").read_text())["seeds"].values())


@pytest.fixture
def table():
    return rows((DOCS / "demo.md").read_text(encoding="utf-8"))


def test_the_demo_page_quotes_its_scores(seeds, table):
    titles = {
        "ties@1.0": "ties@1.0, dare_ties@1.0",
        "ties_knots@1.0": "ties_knots@1.0, dare_ties_knots@1.0",
        "linear": "linear (exact sum)",
        "tuned": "tuned on validation",
        "char n-gram": "character n-gram classifier",
    }
    for variant in seeds[0]["variants"]:
        found = [[seed["variants"][variant][x] for x in LANGUAGES] for seed in seeds]
        if variant.startswith("dare") and variant.endswith("@1.0"):
            assert found == [[s["variants"][variant[5:]][x] for x in LANGUAGES] for s in seeds]
            continue
        *means, spread = table[titles.get(variant, variant)]
        assert means == [f"{x:.3f}" for x in np.mean(found, axis=0)], variant
        whole = [seed[-1] for seed in found]
        assert spread == f"{min(whole):.3f} to {max(whole):.3f}", variant
    for adapter in LANGUAGES[:-1]:
        found = [[seed["adapters"][adapter][x] for x in LANGUAGES[:-1]] for seed in seeds]
        assert table[adapter] == [f"{x:.3f}" for x in np.mean(found, axis=0)], adapter


def test_the_demo_page_says_rightly_what_holds(seeds, table):
    own = [[seed["adapters"][x][x] for x in LANGUAGES[:-1]] for seed in seeds]
    whole = [{v: scores["all"] for v, scores in seed["variants"].items()} for seed in seeds]
    lower = [
        sum(
            seed["adapters"][y][y] - seed["adapters"][x][y] >= 0.05
            for x in LANGUAGES[:-1]
            for y in LANGUAGES[:-1]
        )
        for seed in seeds
    ]
    ngrams = [max(seed["variants"]["char n-gram"].values()) for seed in seeds]
    gaps = {v: [f"{100 * (s['combined'] - s[v]):.1f}" for s in whole] for v in ("base", "tuned")}
    assert table["`combined`"] == [f"{s['combined']:.3f}" for s in whole]
    assert table["individuals, lowest and highest"] == [f"{min(s):.3f}, {max(s):.3f}" for s in own]
    assert table["adapters at least 5 points below the language's own, of 20"] == list(
        map(str, lower)
    )
    assert table["base below `combined`, points"] == gaps["base"]
    assert table["tuned merge below `combined`, points"] == gaps["tuned"]
    assert table["n-gram classifier, highest language"] == [f"{x:.3f}" for x in ngrams]


def test_the_readme_quotes_the_first_seed(seeds):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = seeds[0]["variants"]
    lines = text.split("variant  ")[1].split("```")[0].splitlines()[1:]
    shown = {name: [float(x.strip("*")) for x in cells] for name, *cells in map(str.split, lines)}
    del shown["..."]
    assert len(shown) == 6
    for name, values in shown.items():
        assert values == pytest.approx([first[name][x] for x in LANGUAGES], abs=5.1e-5), name
    best, base, combined = (first[v]["all"] for v in (seeds[0]["chosen"], "base", "combined"))
    assert f"lies {100 * (best - base):.1f} points above the base" in text
    assert f"and {100 * (combined - best):.1f} below `combined`" in text
