"""The commands of README.md are known, and those of docs/own-data.md do what it says."""

import ast
import dataclasses
import json
import os
import re
import shlex
import subprocess

import pytest

from langmerge_jax.adapters import load_adapter
from langmerge_jax.data.sources import Source
from langmerge_jax.files import read_json, read_jsonl
from langmerge_jax.lifecycle.run import source_spec
from langmerge_jax.tasks.make import make_task
from tests.doors import ROOT, run_door
from tests.pages import accepts, blocks, commands, environment, spans

README, OWN = "README.md", "docs/own-data.md"


def scripts(page):
    """The blocks of a page that are commands."""
    return [x.text for x in blocks(page) if not x.kind and not x.text.startswith("{")]


# README.md: what a command names is there, and doors know their flags.


def check_make(words, folder):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words[1:]:
        assert word in targets, f"the Makefile has no target {word!r}"


def check_pip(words, folder):
    assert words[1:3] == ["install", "-e"]
    for extra in re.fullmatch(r"\.\[([\w,]+)\]", words[3])[1].split(","):
        assert extra in extras()


def extras():
    """What setup.py can install beside the package."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    keywords = (x for x in ast.walk(tree) if isinstance(x, ast.keyword))
    return ast.literal_eval(next(x.value for x in keywords if x.arg == "extras_require"))


def check_python(words, folder):
    accepts(words, folder)


def check_local(words, folder):
    assert os.access(ROOT / words[0], os.X_OK)
    assert int(words[1])
    accepts([word for word in words[2:] if word != "…"], folder)


def check_train(words, folder):
    """Settings of the train door by which something is added to a run."""
    accepts(["python", "-m", f"langmerge_jax.{words[0]}", CONFIG, *words[1:]], folder)


def check_tensorboard(words, folder):
    assert words[1:] == ["--logdir", "runs/mine/training"], "the workdir of configs/mine.py"


def check_vllm(words, folder):
    """What is served is what was merged, over the config's base, and its rank is allowed."""
    (made,) = (x for x in map(shlex.split, FENCED) if x[2:3] == ["langmerge_jax.merge"])
    merged = dict(flag.partition("=")[::2] for flag in made[3:])
    config = mine()
    assert words[1:3] == ["serve", config.base]
    flags = dict(zip(words[4::2], words[5::2], strict=True))
    assert flags["--lora-modules"].partition("=")[2] == merged["--output"]
    adapters = dict(x.split("=") for x in merged["--adapters"].split(","))
    assert adapters == {x: f"runs/mine/adapters/{x}" for x in config.languages}
    assert len(adapters) * config.lora.rank <= int(flags["--max-lora-rank"])


CONFIG = "--config=configs/mine.py"
CHECKS = {
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "launch/local.sh": check_local,
    "train": check_train,
    "tensorboard": check_tensorboard,
    "vllm": check_vllm,
}
FENCED = [line for line in commands(scripts(README)) if line.strip()]
# In sentences whatever begins like a command, or has flags, is one.
SAID = [
    span
    for span in spans(README)
    if " " in span and (span.split()[0] in CHECKS or " -" in span) and not span.startswith("-")
]
OF_DOORS = "python -m langmerge_jax.<door> --help"


def mine():
    """The config that README.md shows."""
    (block,) = (x for x in blocks(README) if x.kind == "python")
    scope = {}
    exec(block.text, scope)
    return scope["get_config"]()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as README.md has it: its config, and its row in every file that the config reads."""
    folder = tmp_path_factory.mktemp("readme")
    (config,) = (x.text for x in blocks(README) if x.kind == "python")
    (row,) = (x.text for x in blocks(README) if x.text.startswith("{"))
    (folder / "configs").mkdir()
    (folder / "configs/mine.py").write_text(config, encoding="utf-8")
    (folder / "data/en").mkdir(parents=True)
    (folder / "data/en/train.jsonl").write_text(row, encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", [*FENCED, *(x for x in SAID if x != OF_DOORS)])
def test_the_readme_has_commands_of_known_kinds_that_are_taken(command, folder):
    words = shlex.split(command, comments=True)
    assert words[0] in CHECKS, f"write a check for {words[0]!r}"
    CHECKS[words[0]](words, folder)


def test_the_readme_has_extras_and_doors_that_are_there():
    text = (ROOT / README).read_text(encoding="utf-8")
    assert {"tpu", "cuda12", "cuda13"} == set(re.findall(r"'\.\[(\w+)\]'", text)) <= set(extras())
    (row,) = (line for line in text.splitlines() if f"`{OF_DOORS}`" in line)
    doors = re.findall(r"`(\w+)`", row.partition(OF_DOORS)[2])
    assert {"train", "merge", "evaluate", "update"} <= set(doors)
    for door in doors:
        accepts(["python", "-m", f"langmerge_jax.{door}"])
        assert "flags:" in run_door(door, "--help").stdout


def test_the_readme_has_a_row_that_its_config_reads(folder, monkeypatch):
    monkeypatch.chdir(folder)
    config = mine()
    source = Source(source_spec(config.data, str, config.languages), make_task(config))
    (row,) = source.draw("en", "train")
    assert (row.text, row.target) == ("The battery lasts for days.", "positive")


# docs/own-data.md: a reader's afternoon, over a tiny base.


def steps():
    """Yields the scripts of the page, each with what the page says that its last command says."""
    found = blocks(OWN)
    for block, following in zip(found, [*found[1:], None], strict=True):
        assert block.kind in ("", "text"), f"nothing runs a block of {block.kind}"
        if not block.kind:
            yield block.text, following.text if following and following.kind else ""


def test_the_page_on_own_rows_does_what_it_says(tmp_path, tiny_config, make_base):
    base = make_base(dataclasses.replace(tiny_config, num_hidden_layers=1))
    (tmp_path / "configs").mkdir()
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "Qwen/Qwen3-0.6B").symlink_to(base)
    for script, said in steps():
        # Nothing is fetched: the hub is not asked for what lies here.
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment() | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        refused = said.startswith("error: ")
        assert done.returncode == (2 if refused else 0), f"{script}\n{done.stderr}"
        assert (done.stderr if refused else done.stdout).endswith(said), f"{script}\n{done.stderr}"
    # Where it says that something lies, it does.
    named = [x for x in spans(OWN) if x.startswith("runs/")]
    assert named
    for name in named:
        assert (tmp_path / name).exists(), name
    # Columns and labels were read as the map of the config has them.
    (row,) = read_jsonl(tmp_path / "runs/reviews/predictions/base/en.jsonl")
    assert row["reference"] == "negative"
    (asked,) = read_jsonl(tmp_path / "runs/reviews/test/en.jsonl")
    assert "Text: It never worked." in json.dumps(asked)
    changes = read_json(tmp_path / "runs/reviews/updates/fr/changes.json")
    assert {row["language"] for row in changes["rows"]} == {"en", "de", "fr", "all"}
    assert load_adapter(tmp_path / "reviews/merged").base == "Qwen/Qwen3-0.6B"


def test_nothing_on_the_page_on_own_rows_is_left_unrun():
    for span in spans(OWN):
        assert not re.match(r"(python|pip|launch/|hf) ", span), f"{span!r}: run it in a block"
