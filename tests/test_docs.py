"""The demo page says what the committed scores say."""

import json
import pathlib

import numpy as np

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
LANGUAGES = ("en", "de", "fr", "ja", "zh", "all")


def rows(text):
    """Table rows by first cell; those of the page's first two tables have different ones."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    found = {}
    for name, *cells in lines:
        found.setdefault(name.strip(), [cell.strip(" *") for cell in cells])
    return found


def test_the_demo_page_quotes_its_scores():
    table = rows((DOCS / "demo.md").read_text(encoding="utf-8"))
    seeds = list(json.loads((DOCS / "demo_scores.json").read_text())["seeds"].values())
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
