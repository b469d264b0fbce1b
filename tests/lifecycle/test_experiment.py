"""The whole road, tiny: data, base, adapters, merges, scores, and again."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from langmerge_jax.adapters import load_adapter
from langmerge_jax.demo.corpus import VERDICTS
from langmerge_jax.demo.grammar import LANGUAGES

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPES = ("ties", "ties_knots", "dare_ties", "dare_ties_knots")


def door(name, workdir, *flags, config="tests/tiny.py"):
    command = [sys.executable, "-m", f"langmerge_jax.{name}", f"--config={config}"]
    return subprocess.run(
        [*command, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    result = door("experiment", workdir)
    assert result.returncode == 0, result.stderr
    return workdir, result


def test_scores_hold_every_variant_language_and_metric_with_n(finished):
    workdir, _ = finished
    scores = json.loads((workdir / "scores.json").read_text())
    merges = [f"{method}@{density}" for method in RECIPES for density in ("1.0", "0.5")]
    variants = {"base", "combined", "individual", "linear", "peft/linear", "tuned", *merges}
    cells = {(r["variant"], r["language"], r["metric"]): r for r in scores}
    assert len(cells) == len(scores) == len(variants) * 4 * 3
    assert {variant for variant, *_ in cells} == variants
    for variant in variants:
        for metric in ("macro_f1", "precision", "recall"):
            values = [cells[variant, language, metric]["value"] for language in ("en", "ja", "fr")]
            assert cells[variant, "all", metric]["value"] == pytest.approx(np.mean(values))
            assert cells[variant, "all", metric]["n"] == 120
            assert all(0 <= value <= 1 for value in values)


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
    *table, place = result.stdout.splitlines()
    assert max(map(len, table)) <= 80
    assert place == f"results: {workdir}"
    markdown = (workdir / "scores.md").read_text()
    rows = (workdir / "scores.csv").read_text().splitlines()
    assert rows[0] == "variant,language,metric,value,n"
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
    tried = tuning["macro_f1_on_validation"]
    assert set(tried) == {"ties@0.5", "ties@0.5*2.0", "ties_knots@0.5", "ties_knots@0.5*2.0"}
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
    for what in ("corpus", "base model", "adapters", "merge", "predictions", "n-gram baseline"):
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


def test_a_workdir_of_another_config_is_refused_untouched(finished):
    workdir, _ = finished
    before = sorted(workdir.rglob("*"))
    result = door("experiment", workdir, "--config.lora.rank=3")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "belongs to another config: there lora.rank is 2, here 3" in result.stderr
    assert sorted(workdir.rglob("*")) == before
