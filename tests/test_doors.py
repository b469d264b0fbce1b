"""The doors answer bad input with one clear line and status 2, and explain themselves."""

import json
import shutil
import subprocess
import sys

import pytest

from langmerge_jax.adapters import load_adapter
from langmerge_jax.files import alone_in
from tests.doors import ROOT, refused_line, run_door


@pytest.mark.parametrize("name", ["train", "merge", "evaluate", "experiment", "plan"])
def test_help_says_what_the_door_does_and_names_its_flags(name):
    result = run_door(name, "--help")
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
    assert "--config is missing" in refused_line("train")
    assert "configs/nowhere.py" in refused_line("train", "--config=configs/nowhere.py")


def test_misspelt_key_names_the_nearest(tmp_path):
    line = refused_line(
        "train", "--config=tests/tiny.py", f"--workdir={tmp_path / 'w'}", "--config.lora.rnak=3"
    )
    assert "--config.lora.rnak: the config has no such setting; did you mean rank?" in line
    assert not (tmp_path / "w").exists()


def test_unknown_key_is_named_whole():
    line = refused_line("train", "--config=tests/tiny.py", "--config.demo.base.xyz=3")
    assert "--config.demo.base.xyz: the config has no such setting" in line


def test_wrong_type_and_stray_argument():
    assert "config.lora.rank" in refused_line(
        "train", "--config=tests/tiny.py", "--config.lora.rank=many"
    )
    assert "unknown argument 'tiny'" in refused_line("train", "--config=tests/tiny.py", "tiny")


@pytest.fixture
def project(tmp_path, tiny_config, make_base):
    """A base and English rows of a user's own, and the flags that point at them."""
    base = make_base(tiny_config)
    folder = tmp_path / "data" / "en"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        texts = [f"The screen of {split} is {word}." for word in ("good", "bad", "big")]
        rows = [{"text": text, "label": "neutral"} for text in texts]
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


def test_own_rows_and_base_train_an_adapter_with_all_that_is_told_of_it(project):
    base, _, flags, workdir = project
    assert "--profile_steps=3: not FIRST:END" in refused_line("train", *flags, "--profile_steps=3")
    result = run_door("train", *flags, "--profile_steps=0:1")
    assert result.returncode == 0, result.stderr
    assert load_adapter(workdir / "adapters" / "en").base == str(base)
    (folder,) = workdir.glob("training/en-*")
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert f"profile of steps 0 to the end: {folder / 'profile'}" in result.stderr
    assert len(list((folder / "profile").rglob("*.xplane.pb"))) == 1
    line = refused_line("train", *flags, "--config.adapters_at_once=-1")
    assert "adapters_at_once=-1: give a number of adapters, or 0 for all" in line
    # What changes an adapter by no more than rounding makes no other adapter.
    free = ("--config.train.remat=layer", "--config.train.accumulation=2")
    result = run_door("train", *flags, *free)
    assert result.returncode == 0, result.stderr
    assert "adapters there already, skipped: en" in result.stderr


def test_an_adapter_has_epochs_of_its_own(project, tmp_path):
    _, _, flags, workdir = project

    def with_own(own):
        path = tmp_path / "own.py"
        lines = ["from tests import tiny", "", "", "def get_config():"]
        lines += ["    config = tiny.get_config()", f"    config.train.own = {own}"]
        path.write_text("\n".join([*lines, "    return config", ""]))
        return [f"--config={path}", *flags[1:]]

    line = refused_line("train", *with_own({"eng": {"epochs": 2}}))
    assert "train.own.eng: the adapters of this run are combined, en, es" in line
    shutil.rmtree(workdir)
    line = refused_line("train", *with_own({"en": {"rank": 2}}))
    assert "train.own.en.rank: an adapter may have epochs, learning_rate, warmup" in line
    shutil.rmtree(workdir)
    result = run_door("train", *with_own({"en": {"epochs": 3}}))
    assert result.returncode == 0, result.stderr
    (ledger,) = workdir.glob("training/en-*/ledger.json")
    assert json.loads(ledger.read_text())["steps"] == 3


def test_one_of_several_languages_is_trained_alone(project):
    _, folder, flags, workdir = project
    shutil.copytree(folder, folder.with_name("ja"))
    flags = [x.replace("('en',)", "('en','ja')") for x in flags]
    line = refused_line("train", *flags, "--languages=en,de")
    assert "--languages=de: the languages of this run are en, ja" in line
    line = refused_line("train", *flags, "--languages=en", "--config.combined=True")
    assert "--languages=en: 'combined' is trained on the rows of all" in line
    result = run_door("train", *flags, "--languages=ja")
    assert result.returncode == 0, result.stderr
    assert [x.name for x in (workdir / "adapters").iterdir()] == ["ja"]
    (training,) = (workdir / "training").iterdir()
    shutil.rmtree(workdir / "adapters")
    # A process that was thought to be gone may still be at it.
    with alone_in(training, waits=False):
        line = refused_line("train", *flags, "--languages=ja")
    assert f"{training}: another process is writing it; wait for that" in line


def test_bad_rows_are_named(project):
    _, folder, flags, workdir = project
    path = folder / "train.jsonl"
    good = path.read_text()
    for text, message in [
        (good + "{oops\n", f"{path}:4: not JSON"),
        (good.replace("neutral", "so so", 1), f"{path}:1: unknown label 'so so'"),
        ("\n", f"{path}: no rows"),
    ]:
        path.write_text(text)
        assert message in refused_line("train", *flags)
        assert not (workdir / "adapters").exists()


def test_a_base_without_weights_or_with_half_of_them_is_named(project):
    base, _, flags, _ = project
    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    said = refused_line("train", *flags)
    assert f"{weights}: no valid safetensors file" in said
    assert "truncated?" in said
    weights.unlink()
    assert f"{base}: a base without weights" in refused_line("train", *flags)
    shutil.rmtree(base)
    assert f"base model '{base}': no such directory" in refused_line("train", *flags)


def test_a_dry_run_shows_what_is_asked_and_writes_nothing(project):
    _, folder, flags, workdir = project
    long = json.dumps({"text": "The screen is wide. " * 30, "label": "positive"})
    path = folder / "train.jsonl"
    path.write_text(path.read_text() + long + "\n" + long + "\n")
    for door_name, split in (("train", "train"), ("evaluate", "test")):
        result = run_door(door_name, *flags, "--dry_run")
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert sum(line.startswith(f"--- en, {split} row") for line in lines) == 3
        assert f"The screen of {split} is good.\nSentiment?" in result.stdout
        assert ">>>  neutral<|end|>" in result.stdout
        assert max(map(len, (x for x in lines if not x.startswith("---")))) <= 80
    result = run_door("train", *flags, "--dry_run")
    (tokens,) = [x.split() for x in result.stdout.splitlines() if x.startswith("en  ")][:1]
    # Four rows, one of them cut to the longest, one left out that occurs twice.
    assert tokens[1] == "4"
    assert tokens[4] == "96"
    assert tokens[6:] == ["25.0", "%", "1", "0"]
    assert "75.0 %" in result.stdout
    assert not workdir.exists()
