"""The doors answer bad input with one clear line and status 2, and explain themselves."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from langmerge_jax.adapters import load_adapter, save_adapter
from langmerge_jax.merging import merge

ROOT = pathlib.Path(__file__).resolve().parents[1]


def door(name, *flags):
    command = [sys.executable, "-m", f"langmerge_jax.{name}", *flags]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def refusal(name, *flags):
    """The one line with which a door refuses."""
    result = door(name, *flags)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    said = [line for line in lines if line.startswith("error: ")]
    assert len(said) == 1, result.stderr
    assert lines[-1] == said[0]
    assert "Traceback" not in result.stderr
    return said[0]


@pytest.mark.parametrize("name", ["train", "merge", "evaluate", "experiment"])
def test_help_says_what_the_door_does_and_names_its_flags(name):
    result = door(name, "--help")
    assert f"python -m langmerge_jax.{name}" in result.stdout
    assert "--config" in result.stdout
    assert "--workdir" in result.stdout


def test_help_answers_without_heavy_imports():
    code = (
        "import sys, langmerge_jax.train; "
        "print([m for m in ('jax', 'transformers', 'datasets', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_missing_config():
    assert "--config is missing" in refusal("train")
    assert "configs/nowhere.py" in refusal("train", "--config=configs/nowhere.py")


def test_misspelt_key_names_the_nearest(tmp_path):
    line = refusal(
        "train", "--config=tests/tiny.py", f"--workdir={tmp_path / 'w'}", "--config.lora.rnak=3"
    )
    assert "--config.lora.rnak: the config has no such setting; did you mean rank?" in line
    assert not (tmp_path / "w").exists()


def test_unknown_key_is_named_whole():
    line = refusal("train", "--config=tests/tiny.py", "--config.demo.base.xyz=3")
    assert "--config.demo.base.xyz: the config has no such setting" in line


def test_wrong_type_and_stray_argument():
    assert "config.lora.rank" in refusal(
        "train", "--config=tests/tiny.py", "--config.lora.rank=many"
    )
    assert "unknown argument 'tiny'" in refusal("train", "--config=tests/tiny.py", "tiny")


@pytest.fixture
def project(tmp_path, tiny_config, make_base):
    """A base and English rows of a user's own, and the flags that point at them."""
    base = make_base(tiny_config)
    rows = [{"text": f"The screen is {w}.", "label": "neutral"} for w in ("good", "bad", "big")]
    folder = tmp_path / "data" / "en"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    flags = [
        "--config=tests/tiny.py",
        f"--workdir={tmp_path / 'work'}",
        "--config.languages=('en',)",
        f"--config.base={base}",
        f"--config.data.path={tmp_path}/data/{{language}}/{{split}}.jsonl",
    ]
    return base, folder, flags, tmp_path / "work"


def test_own_rows_and_base_train_an_adapter_in_peft_format(project):
    base, _, flags, workdir = project
    result = door("train", *flags)
    assert result.returncode == 0, result.stderr
    assert load_adapter(workdir / "adapters" / "en").base == str(base)


def test_bad_rows_are_named(project):
    _, folder, flags, workdir = project
    path = folder / "train.jsonl"
    good = path.read_text()
    for text, message in [
        (good + "{oops\n", f"{path}:4: not JSON"),
        (good.replace("neutral", "so so", 1), f"{path}:1: unknown label 'so so'"),
        ("\n", f"{path}: the train split of 'en' has no rows"),
    ]:
        path.write_text(text)
        assert message in refusal("train", *flags)
        assert not (workdir / "adapters").exists()


def test_a_base_without_weights_or_with_half_of_them_is_named(project):
    base, _, flags, _ = project
    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert f"{weights}: cannot be read, perhaps truncated" in refusal("train", *flags)
    weights.unlink()
    assert f"{base}: a base without weights" in refusal("train", *flags)
    shutil.rmtree(base)
    assert f"base model '{base}': no such directory" in refusal("train", *flags)


@pytest.fixture
def two_adapters(tmp_path, tiny_config, random_adapter):
    paths = []
    for seed, name in enumerate(("en", "ja")):
        adapter = dataclasses.replace(random_adapter(tiny_config, seed), base="tiny")
        save_adapter(tmp_path / name, adapter)
        paths.append(f"{name}={tmp_path / name}")
    return "--adapters=" + ",".join(paths)


def test_adapters_of_different_bases_are_refused(tmp_path, two_adapters):
    path = tmp_path / "ja" / "adapter_config.json"
    path.write_text(path.read_text().replace('"tiny"', '"other"'))
    output = tmp_path / "out"
    line = refusal("merge", two_adapters, f"--output={output}", "--density=1.0")
    assert "'ja'" in line
    assert "'other'" in line
    assert not output.exists()
    # The same base under two names is the user's to declare.
    accepted = door(
        "merge", two_adapters, f"--output={output}", "--density=1.0", "--nocheck_base_name"
    )
    assert accepted.returncode == 0, accepted.stderr
    assert load_adapter(output).modules


def test_merge_folds_a_full_rank_method_into_the_base(
    tmp_path, two_adapters, tiny_config, make_base
):
    flags = [two_adapters, "--method=ties", "--density=0.5", f"--output={tmp_path / 'out'}"]
    assert "ties@0.5 is full rank and fits no adapter; give --base" in refusal("merge", *flags)
    base = make_base(tiny_config)
    result = door("merge", *flags, f"--base={base}")
    assert result.returncode == 0, result.stderr
    from safetensors.numpy import load_file

    before, after = (load_file(d / "model.safetensors") for d in (base, tmp_path / "out"))
    adapters = {name: load_adapter(tmp_path / name) for name in ("en", "ja")}
    deltas = merge(adapters, "ties@0.5")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        delta = deltas.delta(module) if module in deltas.modules else 0
        np.testing.assert_allclose(after[name], weight + delta, rtol=1e-6)
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert "exists already" in refusal("merge", *flags, f"--base={base}")


def test_merge_flags_are_checked(two_adapters, tmp_path):
    output = f"--output={tmp_path / 'out'}"
    assert "--output is missing" in refusal("merge", two_adapters)
    assert "'en' is not name=value" in refusal("merge", "--adapters=en", output)
    assert "did you mean 'ties_knots'" in refusal(
        "merge", two_adapters, output, "--method=ties_knot", "--density=1"
    )
    assert "--weights: en='x' is no number" in refusal(
        "merge", two_adapters, output, "--density=1", "--weights=en=x"
    )
