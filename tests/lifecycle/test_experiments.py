"""The paper's experiments but sentiment, tiny, each by one command: tables, merges, updates."""

import dataclasses
import functools
import json

import pytest

from langmerge_jax.demo.base import train_tokenizer
from langmerge_jax.demo.corpus import CorpusSettings, write_corpus
from langmerge_jax.demo.grammar import GrammarSettings, LexiconSizes
from langmerge_jax.files import read_json, read_jsonl
from langmerge_jax.paper import UPDATE_RECIPE
from tests.doors import door
from tests.tiny_experiments import RECIPES, ROWS

N = ROWS["test"]
OWN = {"base", "combined", "individual", "routed", *RECIPES}
ROUGE = {f"{name}{kind}" for name in ("rouge1", "rouge2", "rougeL") for kind in ("", "_ascii")}


@pytest.fixture(scope="module")
def base(tiny_config, make_base, tmp_path_factory):
    """One random base for all, whose tokenizer has seen rows of the demo."""
    folder, grammar = tmp_path_factory.mktemp("read"), GrammarSettings()
    tasks = {"themes": {"train": 40}}
    settings = CorpusSettings(
        ("en", "fr", "ja"), {}, 0, 0.0, LexiconSizes(), grammar, grammar, seed=1, tasks=tasks
    )
    write_corpus(folder, settings)
    lines = [x for path in sorted(folder.rglob("*.jsonl")) for x in path.read_text().splitlines()]
    tokenizer = train_tokenizer(lines, vocab_size=1000)
    shape = dataclasses.replace(tiny_config, vocab_size=len(tokenizer))
    return make_base(shape, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """Runs an experiment by its name to the end, once; returns its workdir and what it printed."""

    @functools.cache
    def run(name):
        workdir = tmp_path_factory.mktemp("runs") / name
        config = f"tests/tiny_experiments.py:{name}"
        result = door("experiment", workdir, f"--config.base={base}", config=config)
        assert result.returncode == 0, result.stderr
        return workdir, result.stdout

    return run


def scores(folder):
    """{variant: {language: {metric: row}}} of a score table, which stands in all its files."""
    found = {}
    for row in read_json(folder / "scores.json"):
        of = found.setdefault(row["variant"], {}).setdefault(row["language"], {})
        of[row["metric"]] = row
    table = (folder / "scores.md").read_text()
    assert all(f"| {variant} |" in table for variant in found)
    lines = (folder / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + sum(len(of) for x in found.values() for of in x.values())
    assert (folder / "report.html").is_file()
    return found


def assert_cells(found, variants, languages, metrics):
    """Every variant has every language and metric, on all test rows."""
    assert set(found) == variants
    for of in found.values():
        assert set(of) == {*languages, "all"}
        for language, rows in of.items():
            assert set(rows) == metrics
            count = N * (len(languages) if language == "all" else 1)
            # A rate of quoted examples is one of the rows that quote.
            of_rows = {x: row["n"] for x, row in rows.items()}
            assert of_rows.pop("hallucination_rate", 0) <= count
            assert set(of_rows.values()) == {count}


def predictions(folder, language):
    """{variant: rows} of what answered in a language."""
    paths = sorted((folder / "predictions").glob(f"*/{language}.jsonl"))
    return {path.parent.name: read_jsonl(path) for path in paths}


def assert_kept(folder, language, parsed):
    """Each prediction tells what was asked, said, read and wanted, and what that is worth.

    Args:
      parsed: what is read of an output that is as it should be, or nothing.
    """
    found = predictions(folder, language)
    asked = [(row["id"], row["prompt"], row["reference"]) for row in found["base"]]
    assert len({prompt for _, prompt, _ in asked}) == N
    for rows in found.values():
        assert [(row["id"], row["prompt"], row["reference"]) for row in rows] == asked
        for row in rows:
            assert isinstance(row["output"], str)
            assert row["parsed"] is None or isinstance(row["parsed"], parsed)
            assert row["scores"]
            assert all(isinstance(x, float) for x in row["scores"].values())


def changes(workdir, language):
    """{variant: languages} of the changes that an update made."""
    found, cells = read_json(workdir / "updates" / language / "changes.json"), {}
    assert found["language"] == language
    for row in found["rows"]:
        cells.setdefault(row["variant"], []).append(row["language"])
    return cells


def test_reasoning(finished):
    workdir, printed = finished("reasoning")
    found = scores(workdir)
    clustered = {f"clustered/{recipe}" for recipe in RECIPES}
    assert_cells(found, OWN | clustered, ("en", "fr", "ja"), {"accuracy"})
    # Each language is answered by the merge of its own cluster, and no other.
    for recipe in (recipe.replace("/", "-") for recipe in RECIPES):
        answered = {
            x: {path.stem for path in (workdir / "predictions" / f"{x}-{recipe}").glob("*.jsonl")}
            for x in ("european", "east_asian")
        }
        assert answered == {"european": {"en", "fr"}, "east_asian": {"ja"}}
        right = [row["scores"]["right"] for row in predictions(workdir, "fr")[f"european-{recipe}"]]
        name = f"clustered/{recipe.replace('-', '/')}"
        assert found[name]["fr"]["accuracy"]["value"] == sum(right) / N
    assert_kept(workdir, "en", str)
    assert "\nclustered/ties@0.5" in printed
    assert not (workdir / "updates").exists()


def test_summarization(finished):
    workdir, printed = finished("summarization")
    clustered = {f"clustered/{recipe}" for recipe in RECIPES}
    assert_cells(scores(workdir), OWN | clustered, ("en", "ja"), ROUGE)
    assert_kept(workdir, "ja", str)
    every = ["en", "ja", "all"]
    assert changes(workdir, "en") == {UPDATE_RECIPE: every, "combined": every, "individual": ["en"]}
    costs = {row["what"]: row for row in read_json(workdir / "costs.json")["rows"]}
    assert list(costs) == ["set up", "update en"]
    # 32 rows of the 48 that `combined` is retrained on.
    assert costs["update en"]["predicted_saving"] == pytest.approx(1 / 3, abs=0.08)
    assert "Update en: ROUGE-L after it" in printed


def test_themes(finished):
    workdir, printed = finished("themes")
    languages = ("en", "ja", "mix")
    assert_cells(scores(workdir), OWN, languages, {"hallucination_rate", "malformed"})
    assert_kept(workdir, "mix", dict)
    for home in (workdir, workdir / "updates" / "ja"):
        merged = home / "merged" / UPDATE_RECIPE
        for name in ("merge.json", "inputs.json"):
            assert read_json(merged / name)["weights"] == {"en": 2.0, "ja": 1.0, "mix": 2.0}
    every = [*languages, "all"]
    assert changes(workdir, "ja") == {UPDATE_RECIPE: every, "combined": every, "individual": ["ja"]}
    assert "Update ja: hallucination rate after it" in printed
    assert "Cosine between the adapters' deltas" in printed
    # What is to be learned is what the comments say.
    lines = (workdir / "corpus" / "mix" / "themes" / "train.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    quotes = [quote for theme in row["themes"] for quote in theme["examples"]]
    assert all(any(quote in comment for comment in row["comments"]) for quote in quotes)


def test_multitask(finished):
    workdir, printed = finished("multitask")
    across = {"combined_tasks", *(f"all_tasks/{recipe}" for recipe in RECIPES)}
    # A merge of full rank is no adapter that could be merged again.
    across |= {f"by_task/{recipe}" for recipe in RECIPES if recipe != "ties@0.5"}
    metrics = {"sentiment": {"macro_f1", "precision", "recall"}, "summarization": ROUGE}
    for task, names in metrics.items():
        assert_cells(scores(workdir / task), OWN | across, ("en", "ja"), names)
        assert_kept(workdir / task, "en", str)
        assert f"=== {task}\n" in printed
        assert f"report: {workdir / task / 'report.html'}" in printed
    inputs = {
        x: read_json(workdir / "merged" / f"{x}-{UPDATE_RECIPE}" / "inputs.json")["adapters"]
        for x in ("all_tasks", "by_task")
    }
    assert set(inputs["by_task"]) == set(metrics)
    assert set(inputs["all_tasks"]) == {f"{task}-{x}" for task in metrics for x in ("en", "ja")}
    assert {path.name for path in (workdir / "adapters").iterdir()} == {"combined"}
