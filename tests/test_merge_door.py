"""`python -m langmerge_jax.merge` over adapters, as a user meets it."""

import dataclasses
import hashlib
import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from langmerge_jax.adapters import Adapter, Factors, load_adapter, save_adapter
from langmerge_jax.merging import merge
from tests.doors import refused_line, run_door

REAL = pathlib.Path(__file__).parents[1] / "../shared/realdata/lora_adapters/open-calm-1b_r1"


def refusal(*flags):
    return refused_line("merge", *flags)


def done(*flags):
    result = run_door("merge", *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def two_adapters(tmp_path, tiny_config, random_adapter):
    paths = []
    for seed, name in enumerate(("en", "ja")):
        adapter = dataclasses.replace(random_adapter(tiny_config, seed), base="tiny")
        save_adapter(tmp_path / name, adapter)
        paths.append(f"{name}={tmp_path / name}")
    return "--adapters=" + ",".join(paths)


def loaded(tmp_path):
    return {name: load_adapter(tmp_path / name) for name in ("en", "ja")}


def test_the_adapter_comes_with_a_card_that_tells_what_it_was_made_from(tmp_path, two_adapters):
    output = tmp_path / "out"
    flags = [two_adapters, "--method=ties_knots", "--density=0.5", "--weights=ja=2"]
    said = done(*flags, f"--output={output}")
    assert f"merged 2 adapters by ties_knots@0.5: adapter of rank 8, {output}" in said
    assert {path.name for path in output.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "merge.json",
        "README.md",
    }
    adapters, result = loaded(tmp_path), load_adapter(output)
    expected = merge(adapters, "ties_knots@0.5", weights={"en": 1.0, "ja": 2.0})
    for path, factors in expected.modules.items():
        np.testing.assert_array_equal(result.modules[path].delta(), factors.delta())

    facts = json.loads((output / "merge.json").read_text())
    assert facts["recipe"] == "ties_knots@0.5"
    assert facts["weights"] == {"en": 1.0, "ja": 2.0}
    for name in adapters:
        file = tmp_path / name / "adapter_model.safetensors"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert facts["inputs"][name]["sha256"]["adapter_model.safetensors"] == digest
    whole = {
        name: np.concatenate([f.delta(np.float64).ravel() for f in adapter.modules.values()])
        for name, adapter in (adapters | {"merged": result}).items()
    }
    norms = {name: np.linalg.norm(x) for name, x in whole.items()}
    assert facts["norm"] == pytest.approx(norms["merged"], rel=1e-5)
    assert facts["inputs"]["en"]["norm"] == pytest.approx(norms["en"], rel=1e-5)
    cosine = whole["en"] @ whole["ja"] / norms["en"] / norms["ja"]
    assert facts["cosines"][0][1] == pytest.approx(cosine, abs=1e-5)
    for group, told in facts["groups"].items():
        paths = [path for path in result.modules if path.endswith(group)]
        pairs = [[a.modules[path].delta(np.float64) for a in adapters.values()] for path in paths]
        against = sum(np.minimum(abs(x), abs(y))[x * y < 0].sum() for x, y in pairs)
        total = sum((abs(x) + abs(y)).sum() for x, y in pairs)
        assert told["modules"] == len(paths)
        assert told["sign_conflict"] == pytest.approx(against / total, abs=0.02)
    card = (output / "README.md").read_text()
    assert "--max-lora-rank 8" in card
    assert "ja 2" in card
    # Again into the same directory: an earlier merge is replaced, and nothing else.
    done(*flags, f"--output={output}")
    (output / "notes.txt").write_text("mine")
    assert "holds 'notes.txt'" in refusal(*flags, f"--output={output}")
    assert "holds 'notes.txt'" in refusal(*flags, f"--output={output}", "--dry_run")
    assert (output / "notes.txt").read_text() == "mine"
    assert "is an input of this merge" in refusal(*flags, f"--output={tmp_path / 'en'}")
    save_adapter(tmp_path / "fr", adapters["en"])
    assert "which no merge wrote" in refusal(*flags, f"--output={tmp_path / 'fr'}")


def test_a_full_rank_method_is_truncated_or_folded_and_else_refused(
    tmp_path, two_adapters, tiny_config, make_base
):
    output = tmp_path / "out"
    flags = [two_adapters, "--method=ties", "--density=0.5", f"--output={output}"]
    line = refusal(*flags)
    assert "ties@0.5 is full rank and fits no adapter; give --rank, such as 64 or 0.95" in line
    assert "--base to fold it" in line

    said = done(*flags, "--rank=3")
    facts = json.loads((output / "merge.json").read_text())
    assert f"truncated: {facts['energy']:.4f} of the energy is kept" in said
    assert "adapter of rank 3" in said
    deltas = dict(merge(loaded(tmp_path), "ties@0.5").items())
    values = [np.linalg.svd(x.astype(np.float64), compute_uv=False) for x in deltas.values()]
    kept = sum(np.sum(x[:3] ** 2) for x in values) / sum(np.sum(x**2) for x in values)
    assert facts["energy"] == pytest.approx(kept, abs=1e-5)

    model, base = tmp_path / "model", make_base(tiny_config)
    done(*flags[:-1], f"--output={model}", f"--base={base}")
    before, after = (load_file(d / "model.safetensors") for d in (base, model))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        delta = deltas.get(name.removesuffix(".weight"), 0)
        np.testing.assert_allclose(after[name], weight + delta, rtol=1e-6)
    assert (model / "tokenizer.json").exists()
    assert "As the base model; no adapter is needed." in (model / "README.md").read_text()
    assert "exists already" in refusal(*flags[:-1], f"--output={model}", f"--base={base}")
    # A low-rank method with a base gives a model too.
    folded = tmp_path / "folded"
    done(two_adapters, "--method=linear", f"--output={folded}", f"--base={base}")
    after, sums = load_file(folded / "model.safetensors"), merge(loaded(tmp_path), "linear")
    for path, factors in sums.modules.items():
        expected = before[f"{path}.weight"] + factors.delta()
        np.testing.assert_allclose(after[f"{path}.weight"], expected, rtol=0, atol=1e-5)


def test_a_dry_run_says_what_it_takes_and_writes_nothing(tmp_path, two_adapters):
    before = sorted(tmp_path.rglob("*"))
    said = done(two_adapters, "--method=ties_knots", "--density=0.5", "--dry_run")
    assert "nothing is written" in said
    assert "of memory beside mapped files" in said
    assert max(map(len, said.splitlines())) <= 80
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method=ties_knot", "--density=1"], "did you mean 'ties_knots'"),
        (["--density=0"], "density is 0.0; it is the share of entries to keep and lies in (0, 1]"),
        (["--density=1", "--weights=en=x"], "'en=x': 'x' is no number"),
        (["--density=1", "--weights=fr=1"], "'fr': no adapter of that name; known are en, ja"),
        (["--density=1", "--weights=en:*.mpl.*=1"], "pattern '*.mpl.*' matches no module"),
        (["--density=1", "--rank=0"], "rank is 0; give a whole number from 1"),
        (
            ["--method=ties@0.5", "--density=0.3"],
            "--density=0.3: --method=ties@0.5 has one already",
        ),
        (["--density=1", "--config=tests/tiny.py"], "give one"),
        (["--density=1", "--base=/nowhere"], "--base=/nowhere: no Hugging Face model directory"),
        (["--density=1", "--heads=both"], "'both' is none of refuse, average, from=en, from=ja"),
    ],
)
def test_flags_without_a_meaning_are_refused(tmp_path, two_adapters, flags, message):
    output = tmp_path / "out"
    assert message in refusal(two_adapters, f"--output={output}", *flags)
    assert not output.exists()


def test_flags_that_lack_something_say_so(tmp_path, two_adapters):
    assert "--output is missing" in refusal(two_adapters)
    assert "'en' is not name=directory" in refusal("--adapters=en", f"--output={tmp_path / 'out'}")
    assert "--dry_run is for --adapters" in refusal("--config=tests/tiny.py", "--dry_run")


def test_adapters_of_different_bases_are_the_users_to_declare_one(tmp_path, two_adapters):
    path = tmp_path / "ja" / "adapter_config.json"
    path.write_text(path.read_text().replace('"tiny"', '"other"'))
    output = tmp_path / "out"
    flags = [two_adapters, f"--output={output}", "--density=1.0"]
    line = refusal(*flags)
    assert "'ja'" in line
    assert "'other'" in line
    assert not output.exists()
    done(*flags, "--allow_base_mismatch")
    assert load_adapter(output).modules


def test_what_some_adapters_lack_and_heads_are_the_users_to_decide(tmp_path):
    rng = np.random.default_rng(0)

    def factors():
        a, b = rng.normal(size=(2, 12)), rng.normal(size=(10, 2))
        return Factors(a.astype(np.float16), b.astype(np.float16), 2.0)

    heads = {name: rng.normal(size=(3, 12)).astype(np.float16) for name in ("en", "ja")}
    both = {"layers.0.q": factors(), "layers.1.q": factors()}
    save_adapter(tmp_path / "en", Adapter(both, heads={"score.weight": heads["en"]}))
    one = {"layers.0.q": factors()}
    save_adapter(tmp_path / "ja", Adapter(one, heads={"score.weight": heads["ja"]}))
    output = tmp_path / "out"
    flags = [
        f"--adapters=en={tmp_path / 'en'},ja={tmp_path / 'ja'}",
        "--method=linear",
        f"--output={output}",
    ]
    assert "adapter 'ja': layers.1.q is missing" in refusal(*flags)
    assert "score.weight was trained in full" in refusal(*flags, "--missing=zero")
    assert not output.exists()
    done(*flags, "--missing=zero", "--heads=average", "--dtype=bfloat16")
    merged = load_adapter(output)
    expected = (heads["en"].astype(np.float64) + heads["ja"]) / 2
    head = merged.heads["score.weight"].astype(np.float64)
    np.testing.assert_allclose(head, expected, rtol=4e-3)
    assert merged.modules["layers.1.q"].a.dtype == ml_dtypes.bfloat16
    assert merged.heads["score.weight"].dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(
        merged.modules["layers.1.q"].delta(), both["layers.1.q"].delta(), rtol=0.02, atol=0.05
    )
    done(*flags, "--missing=zero", "--heads=from=ja")
    np.testing.assert_array_equal(load_adapter(output).heads["score.weight"], heads["ja"])


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no published adapter at {REAL}")
def test_a_published_adapter_of_another_architecture_is_merged(tmp_path):
    original = load_adapter(REAL)
    output = tmp_path / "out"
    flags = [f"--adapters=a={REAL},b={REAL}", f"--output={output}"]
    done(*flags, "--method=soup")
    for path, factors in load_adapter(output).modules.items():
        expected = original.modules[path].delta()
        np.testing.assert_allclose(
            factors.delta(), expected, rtol=0, atol=2e-3 * abs(expected).max()
        )
    # Twice the same adapter in float16: one direction, by TIES itself.
    done(*flags, "--method=ties_knots", "--density=1")
    merged = load_adapter(output)
    for path, factors in merged.modules.items():
        expected = original.modules[path].delta()
        assert factors.rank == 1
        np.testing.assert_allclose(
            factors.delta(), expected, rtol=0, atol=2e-3 * abs(expected).max()
        )
