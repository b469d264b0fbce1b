"""Answers of variants that share batches are their own; killed, answering goes on."""

import collections

import numpy as np
import pytest

from langmerge_jax.adapters import save_adapter
from langmerge_jax.config import section
from langmerge_jax.errors import InputError
from langmerge_jax.evaluation import predict as engine
from langmerge_jax.files import read_json, read_jsonl, write_json, write_jsonl
from langmerge_jax.lifecycle.evaluation import evaluate
from langmerge_jax.lifecycle.experiment import evaluate_and_report
from langmerge_jax.lifecycle.outside import score_outside
from langmerge_jax.lifecycle.prediction import Answerer, predict
from langmerge_jax.lifecycle.scores import Scorer, score
from langmerge_jax.lifecycle.variants import Variant
from langmerge_jax.reporting.results import Results

LABELS = ("positive", "neutral", "negative")
RANKS = {"a": 2, "b": 4, "c": 2, "d": 2}


class Killed(BaseException):
    pass


@pytest.fixture
def variants(tiny_config, random_adapter):
    """Adapters of two ranks, and the base, counting how often each is loaded."""
    loaded = collections.Counter()

    def variant(name, top):
        def load():
            loaded[name] += 1
            return top

        return Variant({"made of": name}, load)

    adapters = {
        name: random_adapter(tiny_config, seed, rank)
        for seed, (name, rank) in enumerate(RANKS.items())
    }
    found = {name: variant(name, adapter) for name, adapter in adapters.items()}
    return found | {"base": variant("base", None)}, loaded


def answers(run, name):
    return {
        language: read_jsonl(run.predictions_directory(name) / f"{language}.jsonl")
        for language in run.languages
    }


@pytest.mark.parametrize("mode", ["choice", "generation"])
def test_each_variant_answers_as_it_does_alone(make_run, variants, mode):
    found, _ = variants
    more = {"evaluate.mode": mode, "task.max_new_tokens": 5}
    run = make_run("together", **more)
    predict(run, Answerer(run), found)
    for name, variant in found.items():
        alone = make_run(f"alone-{name}", **more)
        predict(alone, Answerer(alone), {name: variant})
        for language, rows in answers(run, name).items():
            for row, other in zip(rows, answers(alone, name)[language], strict=True):
                assert row.keys() == other.keys()
                assert (row["id"], row["prompt"], row["reference"]) == (
                    other["id"],
                    other["prompt"],
                    other["reference"],
                )
                if mode == "choice":
                    ours, theirs = row["log_likelihood"], other["log_likelihood"]
                    assert ours == pytest.approx(theirs, abs=1e-3)
                    assert row["parsed"] == max(ours, key=ours.get) == row["output"]
                else:
                    assert row["output"] == other["output"]
    assert answers(run, "a") != answers(run, "b")
    assert not (run.home / "predictions" / ".journal").exists()


def test_ranks_do_not_mix_and_no_more_share_a_batch_than_may(make_run, variants, monkeypatch):
    found, _ = variants
    seen = []
    scorer = engine.ChoiceScorer.__call__

    def watched(self, prompts, weights):
        seen.append((weights.n, weights.spec and weights.spec.rank, len(prompts)))
        return scorer(self, prompts, weights)

    monkeypatch.setattr(engine.ChoiceScorer, "__call__", watched)
    run = make_run(**{"evaluate.variants_at_once": 2})
    predict(run, Answerer(run), found)
    # a and c, then d; b; the base: 20 rows a language, 8 in a batch at most.
    assert collections.Counter(seen) == collections.Counter(
        {
            (2, 2, 4): 10,
            (1, 2, 8): 4,
            (1, 2, 4): 2,
            (1, 4, 8): 4,
            (1, 4, 4): 2,
            (1, None, 8): 4,
            (1, None, 4): 2,
        }
    )
    bad = make_run("bad", **{"evaluate.variants_at_once": 0})
    with pytest.raises(InputError, match=r"evaluate\.variants_at_once=0"):
        predict(bad, Answerer(bad), found)


@pytest.mark.parametrize("when", [0, 3, 9, 14])
def test_killed_between_batches_the_answers_are_the_same(make_run, variants, monkeypatch, when):
    found, _ = variants
    whole = make_run("whole")
    predict(whole, Answerer(whole), found)
    calls = []
    scorer = engine.ChoiceScorer.__call__

    def killing(self, prompts, weights):
        if len(calls) == when:
            raise Killed
        calls.append(1)
        return scorer(self, prompts, weights)

    cut = make_run("cut")
    with monkeypatch.context() as patch:
        patch.setattr(engine.ChoiceScorer, "__call__", killing)
        with pytest.raises(Killed):
            predict(cut, Answerer(cut), found)
    # A line that the kill cut off.
    for path in cut.home.glob("predictions/.journal/*/*.jsonl"):
        with path.open("ab") as file:
            file.write(b'{"row": 3, "outp')
    again = []

    def counting(self, prompts, weights):
        again.append(1)
        return scorer(self, prompts, weights)

    monkeypatch.setattr(engine.ChoiceScorer, "__call__", counting)
    predict(cut, Answerer(cut), found)
    for name in found:
        assert answers(cut, name) == answers(whole, name)
    # Nothing that was answered is asked again.
    assert len(again) + len(calls) == sum(
        # Each of two languages: three of rank 2 with 2 rows each, the other two with 8.
        2 * -(-20 // rows)
        for rows in (2, 8, 8)
    )
    assert not (cut.home / "predictions" / ".journal").exists()


def test_another_scoring_asks_nothing_again(make_run, variants, tmp_path):
    comments = [f"It came late {i}. The box was torn." for i in range(6)]
    for language in ("en", "ja"):
        write_jsonl(
            tmp_path / "data" / language / "test.jsonl",
            [
                {"id": str(i), "comments": [x], "themes": [{"theme": "t", "examples": ["late"]}]}
                for i, x in enumerate(comments)
            ],
        )
    found, loaded = variants
    themes = {
        "task.name": "themes",
        "task.max_new_tokens": 4,
        "data.fields.text": "comments",
        "data.fields.target": "themes",
    }
    run = make_run(**themes)
    predict(run, Answerer(run), {"a": found["a"]})
    assert loaded["a"] == 1
    # As if the model had quoted with a word of its own.
    output = '[{"theme": "t", "examples": ["It came too late"]}]'
    for language in run.languages:
        path = run.predictions_directory("a") / f"{language}.jsonl"
        write_jsonl(path, [row | {"output": output} for row in read_jsonl(path)])
    fuzzy = make_run(**themes, **{"evaluate.fuzzy": 0.5})
    predict(fuzzy, Answerer(fuzzy), {"a": found["a"]})
    assert loaded["a"] == 1
    (row, *_) = answers(fuzzy, "a")["en"]
    assert row["scores"] == {"examples": 1.0, "invented": 0.0, "malformed": 0.0}
    assert row["output"] == output
    # Those of a cluster are there for its own languages alone.
    alone = Variant({"made of": "a"}, found["a"].load, ("en",))
    predict(fuzzy, Answerer(fuzzy), {"west": alone})
    again = make_run(**themes)
    predict(again, Answerer(again), {"west": alone})
    assert not (again.predictions_directory("west") / "ja.jsonl").exists()
    assert loaded.pop("a") == 2
    loaded["a"] = 1
    strict = make_run(**themes)
    predict(strict, Answerer(strict), {"a": found["a"]})
    assert loaded["a"] == 1
    assert answers(strict, "a")["en"][0]["scores"]["invented"] == 1.0


def test_every_number_follows_from_the_predictions(make_run, variants):
    found, _ = variants
    run = make_run()
    predict(run, Answerer(run), found)
    score(run, {name: dict.fromkeys(run.languages, name) for name in found})
    scores = {
        (r["variant"], r["language"], r["metric"]): r["value"]
        for r in read_json(run.home / "scores.json")
    }
    for name in found:
        rights = []
        for language, rows in answers(run, name).items():
            f1 = []
            for label in LABELS:
                hit = sum(r["parsed"] == label == r["reference"] for r in rows)
                either = sum((r["parsed"] == label) + (r["reference"] == label) for r in rows)
                f1.append(2 * hit / either if either else 0)
            rights.append(np.mean(f1))
            assert scores[name, language, "macro_f1"] == pytest.approx(rights[-1])
        assert scores[name, "all", "macro_f1"] == pytest.approx(np.mean(rights))


def test_outputs_from_elsewhere_are_scored_beside_those_of_the_run(make_run, variants, tmp_path):
    found, loaded = variants
    run = make_run()
    predict(run, Answerer(run), {"a": found["a"], "combined": found["b"]})
    score(run, {name: dict.fromkeys(run.languages, name) for name in ("a", "combined")})
    loaded.clear()
    lines = []
    for language in run.languages:
        for row in answers(run, "a")[language]:
            said = f"I think it is {row['parsed']}." if row["id"] != "3" else "No idea."
            lines.append({"id": row["id"], "language": language, "output": said})
    write_jsonl(tmp_path / "served.jsonl", lines)
    rows = score_outside(run, str(tmp_path / "served.jsonl"))
    assert list(rows) == ["a", "combined", "served"]
    assert not loaded
    score(run, rows)
    for language, of in answers(run, "served").items():
        mine = answers(run, "a")[language]
        for row, own in zip(of, mine, strict=True):
            assert row["parsed"] == (None if row["id"] == "3" else own["parsed"])
    comparisons = read_json(run.home / "comparisons.json")
    assert {row["variant"] for row in comparisons} == {"a", "served"}
    # The rows to answer, with the prompt in words.
    (first, *_) = read_jsonl(run.home / "test" / "en.jsonl")
    assert first["prompt"] == f"{first['text']}\nMood?"
    # Scored again from the file alone.
    again = Scorer(run).read(dict.fromkeys(run.languages, "served"))
    assert again["all"].n == 40


def test_outputs_of_one_file_are_not_those_of_every_language(make_run, tmp_path):
    rows = [{"id": str(i), "output": "neutral"} for i in range(20)]
    write_jsonl(tmp_path / "served.jsonl", rows)
    run = make_run()
    with pytest.raises(
        InputError, match=r"served\.jsonl:1: no field 'language', by which one file"
    ):
        score_outside(run, str(tmp_path / "served.jsonl"))
    for language in run.languages:
        write_jsonl(tmp_path / f"served-{language}.jsonl", rows)
    found = score_outside(run, str(tmp_path / "served-{language}.jsonl"))
    assert found == {"served": {"en": "served", "ja": "served"}}
    for name in ("individual", "linear", "base"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        with pytest.raises(InputError, match=f"'{name}' is a variant of the run"):
            score_outside(run, str(tmp_path / f"{name}.jsonl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], r"1 of 20 test rows of 'en' have no output, the first is '0'"),
        (lambda rows: [*rows, rows[0]], r"f.jsonl:41: a second output for the row '0'"),
        (lambda rows: [rows[0] | {"id": "99"}, *rows[1:]], r":1: 'en' has no test row with the id"),
        (lambda rows: [rows[0] | {"output": 3}, *rows[1:]], r":1: the field 'output' is missing"),
    ],
)
def test_outputs_that_do_not_fit_the_rows_are_named(make_run, tmp_path, change, message):
    rows = [
        {"id": str(i), "language": x, "output": "neutral"} for x in ("en", "ja") for i in range(20)
    ]
    write_jsonl(tmp_path / "f.jsonl", change(rows))
    run = make_run()
    with pytest.raises(InputError, match=message):
        score_outside(run, str(tmp_path / "f.jsonl"))
    assert not run.predictions_directory("f").exists()


def test_outputs_do_not_take_the_name_of_a_variant(make_run, variants, tmp_path):
    found, _ = variants
    run = make_run()
    predict(run, Answerer(run), {"a": found["a"]})
    write_jsonl(tmp_path / "a.jsonl", [{"id": "1", "output": "neutral"}])
    with pytest.raises(InputError, match="'a' is a variant of the run; rename the file"):
        score_outside(run, str(tmp_path / "a.jsonl"))


def test_rows_of_the_table_are_chosen_by_name(make_run, tiny_config, random_adapter):
    run = make_run(**{"merge.recipes": ("linear",)})
    for seed, language in enumerate(run.languages):
        save_adapter(run.adapter_directory(language), random_adapter(tiny_config, seed))
    assert list(evaluate(run, ["base"])) == ["base"]
    assert {p.name for p in (run.home / "predictions").iterdir()} == {"base"}
    assert evaluate(run, ["individual", "linear"]) == {
        "individual": {"en": "individual-en", "ja": "individual-ja"},
        "linear": {"en": "linear", "ja": "linear"},
    }
    with pytest.raises(InputError, match=r"--variants=ties: this run has base, individual, routed"):
        evaluate(run, ["ties"])


def test_some_rows_alone_are_a_table_too(make_run, tiny_config, random_adapter):
    run = make_run(**{"merge.recipes": ("linear",)})
    for seed, name in enumerate((*run.languages, "combined")):
        save_adapter(run.adapter_directory(name), random_adapter(tiny_config, seed))
    table = evaluate_and_report(run, ["base", "combined"])
    assert "combined" in table
    assert not (run.home / "comparisons.json").exists()
    with pytest.raises(InputError, match="the report needs scores of the base and of a merge"):
        Results(run.home)


def test_several_tasks_are_for_the_experiment_door(make_run):
    run = make_run(tasks={"one": section("sentiment"), "two": section("reasoning")})
    with pytest.raises(InputError, match="tasks=one, two: several tasks are for the experiment"):
        evaluate(run, ["base"])


def test_a_task_is_not_answered_in_a_way_it_has_not(make_run, tmp_path):
    write_json(tmp_path / "x.json", {})
    run = make_run(**{"evaluate.mode": "guess"})
    with pytest.raises(
        InputError, match=r"evaluate\.mode='guess': sentiment is answered by choice"
    ):
        evaluate(run, ["base"])
