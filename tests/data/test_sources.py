"""Rows come out as they are on disk, bad ones are named, draws repeat."""

import csv
import dataclasses
import json

import pytest

from langmerge_jax.data.sources import SourceSpec, load_split
from langmerge_jax.errors import InputError

LABELS = ("positive", "neutral", "negative")


@pytest.fixture
def spec(tmp_path):
    path = str(tmp_path / "{language}" / "{split}.jsonl")
    rows = {"train": 0, "validation": 0, "test": 0}
    return SourceSpec(path, "text", "label", "", LABELS, rows, seed=0)


def write(tmp_path, lines, language="en", split="train"):
    path = tmp_path / language / f"{split}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(text, label="neutral", **more):
    return json.dumps({"text": text, "label": label} | more, ensure_ascii=False)


def test_rows_keep_text_label_and_id(spec, tmp_path):
    path = write(tmp_path, [row("良い", "positive", id="a7"), "", row("so\u2028la", "neutral")])
    first, second = load_split(spec, "en", "train")
    assert (first.id, first.text, first.label) == ("a7", "良い", "positive")
    # Without an id a row is named by its place; blank lines and odd separators do not shift it.
    assert (second.id, second.text) == (f"{path}:3", "so\u2028la")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{text: 1}", "train.jsonl:2: not JSON"),
        ("[1]", "train.jsonl:2: a JSON list, not an object"),
        (row("x", "happy"), "train.jsonl:2: unknown label 'happy'; known: positive, neutral"),
        ('{"label": "neutral"}', r"train.jsonl:2: the field 'text' is missing .*\['label'\]"),
        ('{"text": 3, "label": "neutral"}', "train.jsonl:2: the field 'text' is missing or no"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(spec, tmp_path, line, message):
    write(tmp_path, [row("fine"), line])
    with pytest.raises(InputError, match=message):
        load_split(spec, "en", "train")


def test_missing_empty_and_misencoded_files_are_refused(spec, tmp_path):
    with pytest.raises(InputError, match=r"en/train.jsonl: no such file"):
        load_split(spec, "en", "train")
    path = write(tmp_path, [""])
    with pytest.raises(InputError, match="the train split of 'en' has no rows"):
        load_split(spec, "en", "train")
    path.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(InputError, match="not UTF-8"):
        load_split(spec, "en", "train")


def test_a_draw_repeats_and_depends_on_seed_and_language(spec, tmp_path):
    for language in ("en", "de"):
        write(tmp_path, [row(str(i)) for i in range(100)], language)
    drawn = dataclasses.replace(spec, rows={"train": 20})

    def texts(spec, language):
        return [example.text for example in load_split(spec, language, "train")]

    first = texts(drawn, "en")
    assert len(set(first)) == 20
    assert first == texts(drawn, "en")
    assert first != texts(drawn, "de")
    assert first != texts(dataclasses.replace(drawn, seed=1), "en")
    # Fewer than wanted: all of them, in their order.
    assert texts(dataclasses.replace(drawn, rows={"train": 500}), "en") == texts(spec, "en")


def test_a_data_set_in_hub_form_is_filtered_by_language(spec, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    rows = [row(f"text {i}", language=("en", "ja")[i % 2]) for i in range(10)]
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    hub = dataclasses.replace(spec, path=f"hf:{folder}", language_field="language")
    texts = [example.text for example in load_split(hub, "ja", "train")]
    assert texts == [f"text {i}" for i in range(1, 10, 2)]
    with pytest.raises(InputError, match="the train split of 'xx' has no rows"):
        load_split(hub, "xx", "train")
    with pytest.raises(InputError, match="no column 'lang'"):
        load_split(dataclasses.replace(hub, language_field="lang"), "ja", "train")
    with pytest.raises(InputError, match=r"hub', split 'test'"):
        load_split(hub, "ja", "test")


@pytest.mark.parametrize("language", ["english", "japanese"])
def test_real_rows_pass_through(spec, realdata, tmp_path, language):
    source = realdata / "sentiment_tyqiangz" / language / "valid.csv"
    with source.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    write(tmp_path, [json.dumps(r, ensure_ascii=False) for r in rows], language)
    found = load_split(spec, language, "train")
    assert [(e.text, e.label) for e in found] == [(r["text"], r["label"]) for r in rows]
