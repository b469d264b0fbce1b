"""An update trains what it must, and nothing else changes."""

import json
import shutil

import ml_collections
import numpy as np
import pytest

from langmerge_jax.adapters import load_adapter
from langmerge_jax.files import read_jsonl, write_jsonl
from langmerge_jax.lifecycle.update import UpdatedRun
from langmerge_jax.merging import merge
from tests.doors import door


@pytest.fixture
def workdir(finished, tmp_path):
    """A finished run before its updates."""
    workdir = shutil.copytree(finished[0], tmp_path / "tiny")
    for folder in (workdir / "updates", *workdir.glob("training/update-*")):
        shutil.rmtree(folder)
    return workdir


def live(workdir):
    """The recipe that updates merge by."""
    return json.loads((workdir / "tuning.json").read_text())["chosen"]


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_more_rows_for_one_language(workdir):
    before = files(workdir)
    data = workdir / "corpus" / "en" / "update.jsonl"
    result = door("update", workdir, "--language=en", f"--data={data}")
    assert result.returncode == 0, result.stderr
    home = workdir / "updates" / "en"
    after = files(workdir)
    # But for the table that the update's cost is added to.
    del before[workdir / "costs.json"]
    assert {path: after[path] for path in before} == before
    costs = json.loads((workdir / "costs.json").read_text())["rows"]
    assert [row["what"] for row in costs] == ["set up", "update en"]
    assert {p.name for p in (home / "adapters").iterdir()} == {"en", "combined"}

    # Trained on old and new rows, and merged with the others as they were.
    jobs = [json.loads(p.read_text()) for p in workdir.glob("training/update-en-en-*/job.json")]
    assert [list(job) for job in jobs] == [["en"]]
    adapters = {x: load_adapter(workdir / "adapters" / x) for x in ("ja", "fr")}
    adapters["en"] = load_adapter(home / "adapters" / "en")
    expected = merge(adapters, live(workdir), allow_base_mismatch=True)
    found = load_adapter(home / "merged" / live(workdir))
    for module, factors in expected.modules.items():
        np.testing.assert_array_equal(found.modules[module].b, factors.b)

    changes = json.loads((home / "changes.json").read_text())["rows"]
    cells = {(row["variant"], row["language"]) for row in changes}
    assert cells == {
        *((v, x) for v in (live(workdir), "combined") for x in ("en", "ja", "fr", "all")),
        ("individual", "en"),
    }
    for row in changes:
        assert row["difference"] == pytest.approx(row["after"] - row["before"])
    again = door("update", workdir, "--language=en", f"--data={data}")
    assert again.stdout == result.stdout
    assert files(workdir).keys() == after.keys()


def test_a_language_joins(workdir):
    # What is compared with is predicted if it is not there.
    shutil.rmtree(workdir / "predictions" / live(workdir))
    result = door("update", workdir, "--language=es")
    assert result.returncode == 0, result.stderr
    home = workdir / "updates" / "es"
    predictions = home / "predictions" / live(workdir)
    assert {p.stem for p in predictions.glob("*.jsonl")} == {"en", "ja", "fr", "es"}
    assert len(read_jsonl(predictions / "es.jsonl")) == 40
    changes = json.loads((home / "changes.json").read_text())
    assert (changes["language"], changes["warm_start"]) == ("es", None)
    languages = [r["language"] for r in changes["rows"]]
    assert languages == [*["en", "ja", "fr", "all"] * 2, "es", "es"]


def test_a_warm_start_goes_on_from_the_live_adapter(workdir, tmp_path):
    rows = read_jsonl(workdir / "corpus" / "en" / "update.jsonl")
    write_jsonl(tmp_path / "new.jsonl", rows[:10])
    flags = ("--language=en", f"--data={tmp_path / 'new.jsonl'}", "--warm_start=0.5")
    result = door("update", workdir, *flags)
    assert result.returncode == 0, result.stderr
    home = workdir / "updates" / "en-warm"
    warm, old = (load_adapter(x / "adapters" / "en") for x in (home, workdir))
    moved = [np.abs(warm.modules[m].a - old.modules[m].a).max() for m in old.modules]
    # One step of 10 new and 5 old rows; a fresh adapter would lie as far away as two random ones.
    assert 0 < max(moved) < 0.01
    ledgers = [
        json.loads(p.read_text()) for p in workdir.glob("training/update-en-warm-en-*/ledger.json")
    ]
    assert [entry["steps"] for entry in ledgers] == [1]


def test_changed_rows_have_their_results_made_anew_and_nothing_else(workdir):
    path = workdir / "corpus" / "fr" / "train.jsonl"
    write_jsonl(path, read_jsonl(path)[:-1])
    before = files(workdir)
    result = door("experiment", workdir)
    assert result.returncode == 0, result.stderr
    assert "adapters there already, skipped: en, ja" in result.stderr
    assert "made anew, for another rows" in result.stderr
    after = files(workdir)

    def changed(pattern):
        return {p for p in workdir.glob(pattern) if before.get(p) != after[p]}

    assert {p.parent.name for p in changed("adapters/*/*.safetensors")} == {"fr", "combined"}
    merges = {p.parent for p in workdir.glob("merged/*/*.safetensors")}
    assert {p.parent for p in changed("merged/*/*.safetensors")} == merges
    predicted = {p.parent.name for p in changed("predictions/*/en.jsonl")}
    assert not predicted & {"base", "individual-en", "individual-ja"}
    assert {"combined", "individual-fr", "ties@1.0"} <= predicted


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--language is missing"),
        (("--language=en",), "give new rows by --data="),
        (("--language=es", "--warm_start=0.2"), "no adapter to start from"),
        (("--language=es", "--data=es.jsonl"), "write {split} where they differ"),
        (("--language=en", "--data=nowhere.jsonl"), "nowhere.jsonl: no such file"),
    ],
)
def test_what_an_update_lacks_is_said_in_one_line(flags, words, workdir):
    before = files(workdir)
    result = door("update", workdir, *flags)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert files(workdir) == before


def test_an_update_takes_all_further_rows_where_the_config_names_no_number(make_run, tmp_path):
    rows = [{"id": str(i), "text": f"Number {i}", "label": "neutral"} for i in range(9)]
    write_jsonl(tmp_path / "data" / "en" / "train.jsonl", rows)
    run = make_run(**{"data.rows": ml_collections.ConfigDict({"train": 4})})
    new = UpdatedRun(run, "en", None).new_rows()
    assert len(new) == 5
    assert not {row.text for row in new} & {row.text for row in run.examples("en", "train")}
