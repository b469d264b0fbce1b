"""A base made of the run's own rows: of which, how often read, and what is refused."""

import csv

import numpy as np
import pytest

from configs import demo
from langmerge_jax.demo import stage
from langmerge_jax.demo.grammar import LANGUAGES, LexiconSizes, label, render, sample
from langmerge_jax.errors import InputError
from langmerge_jax.files import read_json
from langmerge_jax.lifecycle.run import Run
from langmerge_jax.training.steplog import read_log
from tests import tiny_rows
from tests.doors import door, refused_line

CONFIG = "tests/tiny_rows.py"
SPLITS = ("train", "validation", "test", "instruct")


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    """Two files of rows for each of two languages, many longer than a text may be."""
    folder = tmp_path_factory.mktemp("rows")
    sizes, rng = LexiconSizes(**demo.get_config().demo.corpus.lexicon), np.random.default_rng(0)
    for code, name in (("en", "english"), ("ja", "japanese")):
        (folder / name).mkdir()
        for file in ("train", "valid"):
            with (folder / name / f"{file}.csv").open("w", encoding="utf-8", newline="") as lines:
                rows = csv.writer(lines)
                rows.writerow(["text", "label", "source"])
                for number in range(60):
                    reviews = [sample(rng, sizes) for _ in range(1 + number % 3)]
                    text = " ".join(render(x, LANGUAGES[code], rng) for x in reviews)
                    rows.writerow([f"{file} {number} {text}", label(reviews[0]), "made"])
    return str(folder / "{language}" / "*.csv")


@pytest.fixture
def run(pattern, tmp_path):
    config = tiny_rows.get_config()
    config.data.path = pattern
    config.cpu_devices = 0
    return Run(config, tmp_path / "run")


def test_the_base_reads_training_and_instruct_rows_alone(run, monkeypatch):
    given = {}
    monkeypatch.setattr(stage, "build_base", lambda _, **parts: given.update(parts))
    stage.prepare(run)
    rows = {x: [r for y in run.languages for r in run.examples(y, x)] for x in SPLITS}
    assert sum(map(len, rows.values())) == 240
    read = {row.text for split in ("train", "instruct") for row in rows[split]}
    assert len(given["texts"]) == len(read)
    assert set(given["texts"]) == read
    assert not read & {row.text for split in ("validation", "test") for row in rows[split]}
    assert [x for some in given["examples"].values() for x in some] == rows["instruct"]
    # One language after another would end with the last one alone.
    assert given["texts"] != [row.text for split in ("train", "instruct") for row in rows[split]]


def test_the_base_is_kept_until_a_row_it_has_read_changes(run, pattern, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(stage, "build_base", lambda _, **parts: made.append(parts))
    stage.prepare(run)
    stage.prepare(run)
    assert len(made) == 1
    test = run.examples("en", "test")
    monkeypatch.setattr(run.source, "draw", lambda x, split: test[:1] if split == "train" else test)
    stage.prepare(run)
    assert len(made) == 2


def test_rows_that_are_no_ones_own_are_refused(run):
    del run.config.data.shares["instruct"]
    with pytest.raises(InputError, match=r"data.shares has no 'instruct': .*; give it a share"):
        stage.prepare(run)


def test_without_rows_the_way_to_name_them_is_said_and_nothing_is_claimed(tmp_path):
    flags = ("--config=configs/realdata_sentiment.py", f"--workdir={tmp_path / 'run'}")
    said = refused_line("experiment", *flags)
    assert "data.path is empty" in said
    assert "--config.data.path='DIR/{language}/{split}.csv'" in said
    assert not (tmp_path / "run").exists()


def test_an_experiment_on_rows_of_ones_own_ends_in_a_report(pattern, tmp_path):
    workdir = tmp_path / "run"
    result = door("experiment", workdir, f"--config.data.path={pattern}", config=CONFIG)
    assert result.returncode == 0, result.stderr
    assert "texts cut to 48 tokens" in result.stderr
    # Every text is read twice, in batches of 16.
    counts = read_json(workdir / "base" / "inputs.json")["texts"]
    (log,) = workdir.glob("training/base-*/pretrain-base/steps.jsonl")
    steps = [line for line in read_log(log) if line["event"] == "step"]
    assert len(steps) == 2 * -(-counts // 16)
    for name in ("base", "combined", "individual", "linear", "majority", "char n-gram"):
        assert f"\n{name}" in result.stdout
    assert (workdir / "report.html").exists()
