"""The whole road, tiny: data, base, adapters, merges, scores, and again."""

import json
import shutil

import numpy as np
import pytest

from langmerge_jax.adapters import load_adapter
from langmerge_jax.demo.corpus import VERDICTS
from langmerge_jax.demo.grammar import LANGUAGES
from langmerge_jax.files import read_jsonl
from langmerge_jax.training.steplog import ledger, read_log
from tests.doors import door

RECIPES = ("ties", "ties_knots", "dare_ties", "dare_ties_knots")


def test_scores_hold_every_variant_language_and_metric_with_n(finished):
    workdir, _ = finished
    scores = json.loads((workdir / "scores.json").read_text())
    merges = [f"{method}@{density}" for method in RECIPES for density in ("1.0", "0.5")]
    variants = {
        "base",
        "combined",
        "individual",
        "routed",
        "linear",
        "peft/linear",
        "tuned",
        *merges,
    }
    cells = {(r["variant"], r["language"], r["metric"]): r for r in scores}
    assert len(cells) == len(scores) == len(variants) * 4 * 3
    assert {variant for variant, *_ in cells} == variants
    for variant in variants:
        for metric in ("macro_f1", "precision", "recall"):
            values = [cells[variant, language, metric]["value"] for language in ("en", "ja", "fr")]
            assert cells[variant, "all", metric]["value"] == pytest.approx(np.mean(values))
            assert cells[variant, "all", metric]["n"] == 120
            assert all(0 <= value <= 1 for value in values)
            for row in (cells[variant, x, metric] for x in ("en", "ja", "fr", "all")):
                assert 0 <= row["low"] <= row["value"] + 1e-9 <= row["high"] + 2e-9 <= 1 + 3e-9


def test_dare_at_density_one_predicts_what_ties_predicts_to_the_last_digit(finished):
    workdir, _ = finished
    for method in ("ties", "ties_knots"):
        for language in ("en", "ja", "fr"):
            plain, dare = (
                (workdir / "predictions" / f"{name}@1.0" / f"{language}.jsonl").read_text()
                for name in (method, f"dare_{method}")
            )
            assert plain == dare


def test_the_table_fits_80_columns_and_stands_in_all_three_files(finished):
    workdir, result = finished
    *table, place, report = result.stdout.splitlines()
    assert max(map(len, table)) <= 80
    assert place == f"results: {workdir}"
    assert report == f"report: {workdir / 'report.html'}"
    markdown = (workdir / "scores.md").read_text()
    rows = (workdir / "scores.csv").read_text().splitlines()
    assert rows[0] == "variant,language,metric,value,n,low,high"
    scores = json.loads((workdir / "scores.json").read_text())
    assert len(rows) == 1 + len(scores)
    for name in ("base", "individual", "dare_ties_knots@0.5", "char n-gram"):
        assert f"\n{name}" in result.stdout
        assert f"| {name} |" in markdown
    for row in scores:
        if row["metric"] == "macro_f1" and row["variant"] != "tuned":
            assert f"{row['value']:.4f}" in result.stdout


def test_individual_scores_are_the_diagonal_of_the_matrix(finished):
    workdir, _ = finished
    scores = json.loads((workdir / "scores.json").read_text())
    matrix = json.loads((workdir / "matrix.json").read_text())
    for language in ("en", "ja", "fr"):
        one = [r for r in scores if r["variant"] == "individual" and r["language"] == language]
        other = [r for r in matrix if r["adapter"] == r["language"] == language]
        assert [r["value"] for r in one] == [r["value"] for r in other]
        assert len(one) == 3


def test_the_tuned_row_is_the_best_that_was_tried(finished):
    tuning = json.loads((finished[0] / "tuning.json").read_text())
    tried = tuning["on_validation"]
    assert tuning["metric"] == "macro_f1"
    assert set(tried) == {f"ties_knots@{x}" for x in ("1.0", "1.0*2.0", "0.5", "0.5*2.0")}
    assert tried[tuning["chosen"]] == max(tried.values())


def test_the_corpus_shares_no_text_between_splits(finished):
    for language in ("en", "ja", "fr"):
        folder = finished[0] / "corpus" / language
        texts = [
            json.loads(line)["text"]
            for split in ("train", "update", "validation", "test", "instruct")
            for line in (folder / f"{split}.jsonl").read_text().splitlines()
        ]
        assert len(set(texts)) == len(texts) == 140
        raw = set((folder / "unlabelled.txt").read_text().splitlines())
        endings = [ending for some in VERDICTS[language].values() for ending in some]
        assert any(line.endswith(ending) for line in raw for ending in endings)
        space = LANGUAGES[language].space
        assert not raw & {text + space + ending for text in texts for ending in endings}
        assert not raw & set(texts)


def test_routed_rows_are_those_of_the_adapter_they_were_sent_to(finished):
    workdir, _ = finished
    for language in ("en", "ja", "fr"):
        routed = read_jsonl(workdir / "predictions" / "routed" / f"{language}.jsonl")
        for i, row in enumerate(routed):
            to = (
                workdir / "predictions" / f"individual-{row.pop('routed_to')}" / f"{language}.jsonl"
            )
            assert read_jsonl(to)[i] == row
    accuracy = json.loads((workdir / "routing.json").read_text())
    # Three scripts' worth of characters apart: even 32 rows a language tell them.
    assert min(accuracy.values()) > 0.9


def test_every_variant_is_compared_with_combined(finished):
    rows = json.loads((finished[0] / "comparisons.json").read_text())
    by_variant = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)
        assert row["low"] <= row["difference"] + 1e-9 <= row["high"] + 2e-9
        assert row["verdict"] in ("on par", "worse", "undecided")
        assert (row["p_par_holm"] is None) == (row["variant"] in ("individual", "routed"))
        assert (row["deciding_n"] is None) == (row["verdict"] != "undecided")
    assert {r["language"] for r in by_variant["ties@1.0"]} == {"en", "ja", "fr", "all"}


def test_the_cost_table_adds_up_from_the_step_logs(finished):
    workdir, result = finished
    costs = json.loads((workdir / "costs.json").read_text())
    found = {row["what"]: row for row in costs["rows"]}
    assert list(found) == ["set up", "update en", "update en-warm", "update es"]
    assert found["set up"]["predicted_saving"] == 0
    # 64 of 128 rows, 32 + 6 of 128, 32 of 128: by tokens, about as by rows.
    for what, share in (("update en", 1 / 2), ("update en-warm", 0.7), ("update es", 3 / 4)):
        assert found[what]["predicted_saving"] == pytest.approx(share, abs=0.08)
        assert f"\n{what}" in result.stdout
    for path in workdir.glob("training/*/ledger.json"):
        assert json.loads(path.read_text()) == ledger(read_log(path.parent / "steps.jsonl"), 0.0)


def test_what_comes_out_loads_in_transformers_and_peft(finished):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    peft = pytest.importorskip("peft", reason="peft is not installed (extra `dev`)")
    import transformers

    workdir, _ = finished
    tokenizer = transformers.AutoTokenizer.from_pretrained(workdir / "base")
    first = json.loads((workdir / "corpus/ja/test.jsonl").read_text().splitlines()[0])
    message = [{"role": "user", "content": first["text"] + "\nSentiment?"}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer.encode(prompt, add_special_tokens=False)
    for variant, folder in (
        ("individual-ja", "adapters/ja"),
        ("combined", "adapters/combined"),
        ("ties_knots@0.5", "merged/ties_knots@0.5"),
        ("linear", "merged/linear"),
    ):
        model = transformers.AutoModelForCausalLM.from_pretrained(workdir / "base")
        model = peft.PeftModel.from_pretrained(model, workdir / folder).eval()
        found = (workdir / "predictions" / variant / "ja.jsonl").read_text().splitlines()[0]
        for label, ours in json.loads(found)["log_likelihood"].items():
            answer = tokenizer.encode(label, add_special_tokens=False)
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *answer]])).logits[0]
            likelihood = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
            theirs = sum(likelihood[i, token].item() for i, token in enumerate(answer))
            assert ours == pytest.approx(theirs, abs=1e-3), variant


def test_a_second_run_computes_nothing_and_says_so(finished):
    workdir, first = finished
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*.safetensors")}
    again = door("experiment", workdir)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*.safetensors")}
    for what in ("corpus", "base model", "adapters", "merge", "predictions", "baselines"):
        assert f"{what} there already, skipped" in again.stderr


def test_a_missing_piece_alone_is_made_again(finished, tmp_path):
    workdir = tmp_path / "tiny"
    shutil.copytree(finished[0], workdir)
    kept = load_adapter(workdir / "adapters" / "fr")
    shutil.rmtree(workdir / "adapters" / "fr")
    result = door("train", workdir)
    assert result.returncode == 0, result.stderr
    assert "skipped: en, ja" in result.stderr
    remade = load_adapter(workdir / "adapters" / "fr")
    for module, factors in kept.modules.items():
        np.testing.assert_allclose(remade.modules[module].b, factors.b, atol=1e-5)
    shutil.rmtree(workdir / "merged" / "ties_knots@0.5")
    shutil.rmtree(workdir / "predictions" / "ties_knots@0.5")
    assert door("merge", workdir).returncode == 0
    assert door("evaluate", workdir).returncode == 0
    assert (workdir / "predictions" / "ties_knots@0.5" / "en.jsonl").exists()


def test_an_experiment_goes_on_at_the_merges(finished, tmp_path):
    """What a run killed between two merges leaves: jax is first used by the merging stage."""
    workdir = tmp_path / "tiny"
    shutil.copytree(finished[0], workdir)
    for folder in ("merged/ties_knots@0.5", "predictions/ties_knots@0.5"):
        shutil.rmtree(workdir / folder)
    result = door("experiment", workdir)
    assert result.returncode == 0, result.stderr
    assert (workdir / "scores.json").read_text() == (finished[0] / "scores.json").read_text()


def test_what_is_merged_and_compared_may_change_in_a_workdir(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "tiny")
    flags = ("--config.merge.recipes=('ties_knots@0.7',)", "--config.evaluate.margin=0.05")
    result = door("evaluate", workdir, *flags)
    assert result.returncode == 0, result.stderr
    config = json.loads((workdir / "config.json").read_text())
    assert config["merge"]["recipes"] == ["ties_knots@0.7"]
    comparisons = json.loads((workdir / "comparisons.json").read_text())
    assert {row["variant"] for row in comparisons} >= {"ties_knots@0.7", "routed"}
    assert {row["margin"] for row in comparisons} == {0.05}


def test_a_workdir_of_another_config_is_refused_untouched(finished):
    workdir, _ = finished
    before = sorted(workdir.rglob("*"))
    result = door("experiment", workdir, "--config.lora.rank=3")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "belongs to another config: there lora.rank is 2, here 3" in result.stderr
    assert sorted(workdir.rglob("*")) == before
