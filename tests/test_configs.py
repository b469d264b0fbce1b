"""Every config: it loads, fits the code, trains on rows as its source publishes them, and its
docstring names commands that exist."""

import importlib.util
import inspect
import json
import pathlib
import re

import ml_collections
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from langmerge_jax.config import claim_workdir
from langmerge_jax.data.sources import Source
from langmerge_jax.files import write_jsonl
from langmerge_jax.lifecycle.run import source_spec
from langmerge_jax.merging import parse
from langmerge_jax.models.lora import targets_of
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.tasks.make import make_task
from langmerge_jax.training.batches import adapter_steps
from langmerge_jax.training.settings import TrainSettings
from tests.doors import ROOT, refused_line

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
LANGUAGES = ("en", "es", "de", "fr", "ja", "zh", "mix")
SPLITS = {"train": 16, "validation": 3, "test": 3}


def module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def load(name, *behind):
    """A config as the doors have it, without the encoder that BERTScore would fetch."""
    config = module(name).get_config(*behind)
    config.evaluate.bertscore.model = ""
    return config.lock()


def words(name):
    """What may stand behind the colon, nothing first."""
    known = {"size": "demo", "clusters": "found"}
    return ["", *(known[x] for x in inspect.signature(module(name).get_config).parameters)]


def loaded(name):
    return [load(name, *([word] if word else [])) for word in words(name)]


def of_tasks(config):
    """The config as each of its tasks has it."""
    found = []
    for section in config.tasks.values() or [config]:
        one = ml_collections.ConfigDict(config.to_dict())
        one.task, one.data = section.task.copy_and_resolve_references(), section.data
        found.append(one)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_a_config_names_exists(name, tiny_config):
    for config in loaded(name):
        for recipe in (*config.merge.recipes, *config.merge.tune_recipes):
            parse(recipe)
        languages, clusters = set(config.languages), config.merge.clusters.to_dict()
        assert not clusters or sorted(sum(clusters.values(), ())) == sorted(languages)
        assert 0 <= config.merge.find_clusters < len(languages)
        assert set(config.merge.weights) <= languages
        if config.updates.plan:
            changed = {entry.partition("=")[0] for entry in config.updates.plan}
            assert changed <= languages | set(config.demo.get("corpus", {}).get("languages", ()))
            parse(config.updates.recipe or config.merge.tune_recipes[0])
        for one in of_tasks(config):
            task = make_task(one)
            assert (one.evaluate.mode or task.modes[0]) in task.modes
            assert one.task.max_length <= max(settings(one, tiny_config).lengths)
            assert set(one.task.answers) <= languages


def settings(config, shape):
    targets = targets_of(config.lora.targets, shape.projections())
    kept = {key: value for key, value in config.lora.items() if key != "targets"}
    return TrainSettings(**kept, targets=targets, **config.train.to_dict())


def test_the_sentences_asked_for_are_read_back():
    config = load("sentiment_free_text")
    task = make_task(config)
    for language in config.languages:
        for label, sentence in config.task.answers[language].items():
            assert task.parse(sentence, language) == label
            # It is the label space that differs, so the labels' own words are not among them.
            assert label not in sentence


# Rows as the data sets of the paper publish them.


def text_of(language, split, i):
    """A text that no other row has."""
    return f"{language} {split} {i}: The screen is good. Der Akku. 画面はとても良いです。"


def sentiment_rows(split):
    return [
        {
            "text": text_of(x, split, i),
            "label": ("positive", "neutral", "negative")[i % 3],
            "source": "shop",
            "domain": "product",
            "language": x,
        }
        for i in range(SPLITS[split])
        for x in LANGUAGES
    ]


def reasoning_rows(language, split):
    return [
        {
            "id": f"{split}-{i}",
            "question": text_of(language, split, i),
            "question_concept": "screen",
            "choices": {"label": list("ABCDE"), "text": [f"{x} {i}" for x in "vwxyz"]},
            "answerKey": "ABCDE"[i % 5],
            "hard": i % 2 == 0,
        }
        for i in range(SPLITS[split])
    ]


def summarization_rows(language):
    rows = []
    for i in range(60):
        article = {
            "section_name": ["one", "two"],
            "document": [text_of(language, part, i) for part in ("one", "two")],
            "summary": [f"{part} {i} 良い" for part in ("one", "two")],
        }
        if language != "en":
            article["english_url"] = [f"https://en/{i}"] * 2
            article["english_section_name"] = ["one", "two"]
        rows.append({"url": f"https://{language}/{i}", "article": article})
    return rows


def themes_rows(language, split):
    return [
        {
            "id": f"{split}-{i}",
            "comments": [text_of(language, split, i), "The price is high."],
            "themes": [{"theme": "price", "examples": ["price is high"]}],
        }
        for i in range(SPLITS[split])
    ]


def write_hub(folder, rows):
    """Writes {configuration: {split: rows}} as a data set of the hub; "" is the only one."""
    card = []
    for configuration, splits in rows.items():
        card += [f"- config_name: {configuration or 'default'}", "  data_files:"]
        for split, of in splits.items():
            file = pathlib.Path(configuration or "data") / f"{split}-00000-of-00001.parquet"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(of), folder / file)
            card += [f"  - split: {split}", f"    path: {file.parent}/{split}-*"]
    (folder / "README.md").write_text("\n".join(["---", "configs:", *card, "---", ""]))
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Writes the data set of a task as it is published; returns the path to it, once for each."""
    done = {}

    def publish(config):
        task, names = config.task.name, config.data.names
        if task in done:
            return done[task]
        folder = tmp_path_factory.mktemp(task)
        if task == "sentiment":
            path = write_hub(folder, {"": {split: sentiment_rows(split) for split in SPLITS}})
        elif task == "reasoning":
            of = {x: {split: reasoning_rows(x, split) for split in SPLITS} for x in LANGUAGES}
            path = write_hub(folder, of)
        elif task == "summarization":
            path = write_hub(folder, {names[x]: {"train": summarization_rows(x)} for x in names})
        else:
            path = str(folder / config.data.path)
            for x in LANGUAGES:
                (folder / x).mkdir()
                for split in SPLITS:
                    write_jsonl(folder / x / f"{split}.jsonl", themes_rows(x, split))
        return done.setdefault(task, path)

    return publish


@pytest.fixture(scope="module")
def sources():
    """Sources by what they read; many configs read the same."""
    return {}


def asked_and_answered(config, example):
    """What a row is to look like to the model, with tests/conftest.py's chat template."""
    message = config.task.template.replace("{text}", example.text)
    answer = example.target
    if config.task.name == "reasoning":
        choices = zip("ABCDE", example.choices, strict=True)
        message = message.replace("{choices}", "\n".join(f"{x}. {text}" for x, text in choices))
    if config.task.answers:
        answer = config.task.answers[example.language][answer]
    return f"<|begin|><|user|>{message}<|end|><|assistant|>{answer}<|end|>", f"{answer}<|end|>"


@pytest.mark.parametrize("name", [name for name in NAMES if not load(name).demo])
def test_the_first_batch_is_of_the_rows_as_they_are_published(
    name, published, sources, tokenizer, tiny_config
):
    def said(tokens):
        # The tokenizer writes a space before a text and after a special token.
        return re.sub(r"\s", "", tokenizer.decode(tokens))

    for config in of_tasks(load(name)):
        task, key = make_task(config), config.data.to_json()
        if key not in sources:
            config.data.path = published(config)
            sources[key] = Source(source_spec(config.data, str, config.languages), task)
        rows = {x: sources[key].draw(x, "train") for x in config.languages}
        encoded = {x: task.encode(tokenizer, rows[x]) for x in rows}
        assert not any(e.cut for of in encoded.values() for e in of)
        step = next(adapter_steps(encoded, settings(config, tiny_config), make_mesh()))
        assert step.names == sorted(config.languages)
        assert step.length in config.train.buckets
        assert step.arrays["tokens"].shape == (len(rows), 8, step.length)
        for g, language in enumerate(step.names):
            of = {row.id: row for row in rows[language]}
            for b, row in enumerate(step.ids[language]):
                whole, answer = asked_and_answered(config, of[row])
                tokens, target, weight = (
                    step.arrays[x][g, b] for x in ("tokens", "target", "weight")
                )
                # Beyond its end a row is padded with zeros, as is the token <|begin|>.
                tokens = np.trim_zeros(tokens, "b")
                assert said(tokens) == re.sub(r"\s", "", whole)
                assert said(target[weight > 0]) == re.sub(r"\s", "", answer)


# What the docstrings say.


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_has_the_command_and_the_workdir_it_names_fits(name, tmp_path):
    text = module(name).__doc__
    assert re.search(rf"\n  python -m langmerge_jax\.\w+ --config=configs/{name}\.py", text)
    for door, file in re.findall(r"langmerge_jax\.(\w+) --config=(configs/\w+\.py)", text):
        assert (ROOT / "langmerge_jax" / f"{door}.py").is_file()
        assert (ROOT / file).is_file()
    for other in re.findall(r"--workdir=runs/(\w+)", text):
        for mine in loaded(name):
            workdir = tmp_path / "-".join([other, *mine.merge.clusters])
            claim_workdir(workdir, load(other))
            claim_workdir(workdir, mine)
            assert json.loads((workdir / "config.json").read_text()) == json.loads(mine.to_json())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("sentiment_experiment.py:big", "'big' is no size; behind the colon stands demo, or noth"),
        ("sentiment_clusters.py:x", "'x' are no clusters; behind the colon stands found, or noth"),
        ("sentiment_en.py:demo", "get_config() takes 0 positional arguments but 1 was given"),
    ],
)
def test_a_wrong_word_behind_the_colon_is_one_line(config, message):
    line = refused_line("experiment", f"--config=configs/{config}")
    assert line.startswith(f"error: flag --config=configs/{config}: {message}")
