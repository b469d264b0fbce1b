"""The demo page and the README say what the committed scores say."""

import json
import pathlib

import numpy as np
import pytest

from docs import from_demo, from_realdata
from langmerge_jax.reporting.results import Results

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
        "individual": "individual, routed",
        "routed": "individual, routed",
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


def test_the_demo_page_says_rightly_what_updates_change_and_save(seeds, table):
    def change(update, variant, language):
        found = []
        for seed in seeds:
            name = seed["chosen"] if variant == "merge" else variant
            rows = {(r["variant"], r["language"]): r for r in seed["updates"][update]["rows"]}
            found.append(rows[name, language])
        return found

    def points(rows):
        return [f"{100 * row['difference']:+.1f}" for row in rows]

    def levels(rows):
        return [f"{row['before']:.3f}, {row['after']:.3f}" for row in rows]

    def saved(update):
        return [f"{100 * seed['updates'][update]['measured_saving']:.1f}" for seed in seeds]

    assert table["merge on English"] == points(change("en", "merge", "en"))
    assert table["merge, mean of the five"] == points(change("en", "merge", "all"))
    assert table["English adapter on English"] == points(change("en", "individual", "en"))
    assert table["`combined` retrained, mean of the five"] == points(
        change("en", "combined", "all")
    )
    assert table["from the live adapter: merge on English"] == points(
        change("en-warm", "merge", "en")
    )
    assert table["from the live adapter: merge, mean of the five"] == points(
        change("en-warm", "merge", "all")
    )
    assert table["merge on Spanish, before and after"] == levels(change("es", "merge", "es"))
    assert table["`combined` on Spanish, before and after"] == levels(
        change("es", "combined", "es")
    )
    assert table["merge, mean of the other five"] == points(change("es", "merge", "all"))
    assert table["saved by updating English, % (by tokens 66.7 to 66.8)"] == saved("en")
    assert table["saved from the live adapter, % (by tokens 79.8 to 80.1)"] == saved("en-warm")
    assert table["saved by adding Spanish, % (by tokens 83.0 to 83.3)"] == saved("es")
    for seed in seeds:
        for update in seed["updates"].values():
            assert update["measured_saving"] == pytest.approx(update["predicted_saving"], abs=0.05)
        cold, warm = (seed["updates"][x]["rows"] for x in ("en", "en-warm"))
        for language in ("en", "all"):
            of = (seed["chosen"], language)
            wide = next(r for r in cold if (r["variant"], r["language"]) == of)
            found = next(r for r in warm if (r["variant"], r["language"]) == of)
            assert wide["low"] <= found["difference"] <= wide["high"], language


def test_the_readme_shows_the_committed_demo():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert from_demo.fill(text, from_demo.blocks(DOCS / "demo")) == text
    assert "](docs/report.png)" in text


def test_the_page_on_real_rows_shows_the_committed_run():
    text = from_realdata.PAGE.read_text(encoding="utf-8")
    assert from_demo.fill(text, from_realdata.blocks(from_realdata.REALDATA)) == text
    found = Results(from_realdata.REALDATA)
    row, below_base = found.comparison("tuned"), found.score("base")["value"]
    low, high = (f"{-100 * row[key]:.1f}" for key in ("high", "low"))
    below_base -= found.score("tuned")["value"]
    assert (
        f"`{found.recipe}`, lies {-100 * row['difference']:.1f} points below `combined` (95 % "
        f"interval {low} to {high}), and {100 * below_base:.1f} points below the base"
    ) in " ".join(text.split())
    # The page says so of every language and of all.
    assert all(found.unbeaten(x) for x in ("all", *found.languages))


def test_the_committed_demo_is_seed_0_of_the_demo_page(seeds):
    found = {}
    for row in json.loads((DOCS / "demo" / "scores.json").read_text()):
        if row["metric"] == "macro_f1":
            found.setdefault(row["variant"], {})[row["language"]] = row["value"]
    for name, values in seeds[0]["variants"].items():
        if name != "char n-gram":
            assert found[name] == pytest.approx(values, abs=5.1e-5), name


def test_the_demo_saves_what_tokens_predict(seeds):
    """On the mean of the seeds: each is one run on a machine that is not at rest."""
    for update in ("en", "en-warm", "es"):
        rows = [seed["updates"][update] for seed in seeds]
        measured, predicted = (
            np.mean([row[key] for row in rows]) for key in ("measured_saving", "predicted_saving")
        )
        assert measured == pytest.approx(predicted, abs=0.05)
        assert update != "en-warm" or measured >= 0.75
    ours, combined = (
        sum(seed["set_up"][key] for seed in seeds)
        for key in ("device_seconds", "combined_device_seconds")
    )
    assert 0.95 * combined <= ours <= combined


def test_the_demo_page_quotes_costs_and_ranks_rightly(seeds):
    text = " ".join((DOCS / "demo.md").read_text(encoding="utf-8").split())

    def listed(key):
        first, second, third = (f"{seed['set_up'][key]:.1f}" for seed in seeds)
        return f"{first}, {second} and {third}"

    assert f"the five took {listed('device_seconds')} device seconds" in text
    assert f"and `combined` {listed('combined_device_seconds')}:" in text
    costs = json.loads((DOCS / "demo" / "costs.json").read_text())
    apart, combined = costs["scheduled_seconds"], costs["alone_seconds"]["combined"]
    assert f"take the same {apart['1']:.1f} s" in text
    assert f"{combined:.1f}" == f"{apart['1']:.1f}"
    assert f"are done {100 * (1 - apart['2'] / combined):.0f} % sooner" in text
    ranks = {
        row["rank"]: f"{row['value']:.3f}"
        for row in json.loads((DOCS / "demo" / "ranks.json").read_text())["rows"]
        if (row["metric"], row["language"]) == ("macro_f1", "all")
    }
    assert f"cut to 30, 20 and 10 it scores {ranks[30]}, {ranks[20]} and {ranks[10]}" in text
    assert f"where the whole scores {ranks[40]}" in text
