"""Which rows are drawn: the same everywhere, none in two splits, and what is left out is said."""

import collections
import json

import pytest

from langmerge_jax.config import default
from langmerge_jax.data.sources import Source, SourceSpec
from langmerge_jax.errors import InputError
from langmerge_jax.tasks.make import make_task


def source(path, task="sentiment", **more):
    """A source as a config describes it, with a few settings changed."""
    config = default(task)
    data = config.data.to_dict()
    data.pop("labels")
    whole = {"train": 0, "validation": 0, "test": 0, "further": 0}
    config.evaluate.bertscore.model = ""
    own = {"path": str(path), "language_field": "", "names": {}, "splits": {}, "rows": whole}
    return Source(SourceSpec(**(data | own | more)), make_task(config))


def row(text, label="neutral", **more):
    return {"text": text, "label": label} | more


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in rows))
        return path

    return write


@pytest.fixture
def apart(tmp_path, write):
    """Three files of different rows for each of two languages; returns their pattern."""
    for language in ("en", "de"):
        for split, count in (("train", 100), ("validation", 30), ("test", 30)):
            write(f"{language}/{split}.jsonl", [row(f"{split} {i}") for i in range(count)])
    return tmp_path / "{language}" / "{split}.jsonl"


def texts(examples):
    return [example.text for example in examples]


def test_rows_keep_text_label_and_id(write):
    path = write("rows.jsonl", [row("良い", "positive", id="a7"), row("so\u2028la")])
    first, second = source(path, splits={"train": "x"}).draw("en", "more")
    assert (first.id, first.language, first.text, first.target) == ("a7", "en", "良い", "positive")
    # Without an id a row is named by its place.
    assert (second.id, second.text) == (f"{path}:2", "so\u2028la")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("x", "happy"), "rows.jsonl:2: unknown label 'happy'; known: positive, neutral"),
        ({"label": "neutral"}, r"rows.jsonl:2: the field 'text' is missing .*\['label'\]"),
        (row(3), "rows.jsonl:2: the field 'text' is missing or no text"),
        (row(" \n"), "rows.jsonl:2: the field 'text' is empty"),
    ],
)
def test_a_bad_row_is_named_or_left_out(write, caplog, bad, message):
    path = write("rows.jsonl", [row("fine"), bad])
    with pytest.raises(InputError, match=f"{message}.*; data.skip_bad=True leaves bad rows out"):
        source(path).draw("en", "more")
    kept = source(path, skip_bad=True)
    assert texts(kept.draw("en", "more")) == ["fine"]
    assert kept.counts["en", "more"].bad == 1
    assert "en, more: 1 left out that cannot be read" in caplog.text


def test_a_draw_repeats_and_depends_on_seed_and_language(apart):
    few = {"train": 20, "validation": 10, "test": 10}
    first = texts(source(apart, rows=few).draw("en", "train"))
    assert len(set(first)) == 20
    assert first == texts(source(apart, rows=few).draw("en", "train"))
    assert first != texts(source(apart, rows=few).draw("de", "train"))
    assert first != texts(source(apart, rows=few, seed=1).draw("en", "train"))


def test_fewer_rows_than_wanted_are_all_taken_in_their_order_and_said(apart, caplog):
    many = {"train": 500, "validation": 10, "test": 10}
    found = source(apart, rows=many).draw("en", "train")
    assert (
        texts(found)
        == texts(source(apart).draw("en", "train"))
        == [f"train {i}" for i in range(100)]
    )
    assert "en, train: 100 rows taken of 500 asked for" in caplog.text


def test_no_row_is_in_two_splits_or_twice_in_one(write, apart, caplog):
    write("en/validation.jsonl", [row("Test  7"), row("mine")])
    write("en/train.jsonl", [row(x) for x in ("a", "Ａ ", "ＴＥＳＴ 3", "mine", "b")])
    found = source(apart)
    assert texts(found.draw("en", "train")) == ["a", "b"]
    assert texts(found.draw("en", "validation")) == ["mine"]
    assert len(found.draw("en", "test")) == 30
    assert "en, train: 1 left out that occur twice, 2 left out that another split" in caplog.text


def test_what_is_held_out_does_not_depend_on_what_is_trained_on(apart):
    few = {"train": 20, "validation": 10, "test": 10}
    one, other = source(apart, rows=few), source(apart, rows=few | {"train": 50})
    for split in ("validation", "test"):
        assert one.draw("en", split) == other.draw("en", split)
    # More training rows are the same ones and more.
    assert one.draw("en", "train") == other.draw("en", "train")[:20]


def test_an_update_draws_rows_that_no_split_has(apart):
    few = {"train": 20, "validation": 10, "test": 10}
    found = source(apart, rows=few)
    new = texts(found.further("en", 30))
    assert len(set(new)) == 30
    assert not set(new) & set(texts(found.draw("en", "train")))
    assert new == texts(source(apart, rows=few).further("en", 30))
    assert len(found.further("en", 500)) == 80
    with pytest.raises(InputError, match="has no rows beyond those trained on already"):
        source(apart).further("en", 30)


def test_new_rows_from_elsewhere_are_new(apart, write, caplog):
    path = write("new.jsonl", [row(x) for x in ("TRAIN 5", "test 5", "new", "new ", "newer")])
    brought = source(path).draw("en", "more")
    assert texts(source(apart).without(brought, "en")) == ["new", "newer"]
    assert "en: 2 of 4 new rows left out" in caplog.text


def test_one_file_is_shared_out_to_the_splits(write):
    rows = [row(f"text {i}") for i in range(1000)]
    path = write("all.jsonl", rows)
    found = source(path)
    parts = {
        split: set(texts(found.draw("en", split))) for split in ("train", "validation", "test")
    }
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 1000
    assert {split: len(part) for split, part in parts.items()} == pytest.approx(
        {"train": 800, "validation": 100, "test": 100}, abs=30
    )
    # A row stays in its split when others come.
    write("all.jsonl", [*rows, *(row(f"more {i}") for i in range(100))])
    assert set(texts(source(path).draw("en", "test"))) >= parts["test"]


FOUR = {"train": 0.4, "validation": 0.1, "test": 0.2, "instruct": 0.3}


def test_rows_to_instruct_a_base_by_are_shared_out_too(write):
    path = write("all.jsonl", [row(f"text {i}") for i in range(1000)])
    found = source(path, shares=FOUR)
    parts = {split: set(texts(found.draw("en", split))) for split in FOUR}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 1000
    assert {split: len(part) for split, part in parts.items()} == pytest.approx(
        {split: 1000 * share for split, share in FOUR.items()}, abs=45
    )


@pytest.mark.parametrize("shares", [{}, {"shares": FOUR}])
def test_rows_to_instruct_a_base_by_are_in_no_other_split_if_they_have_a_share(
    apart, write, shares
):
    write("en/instruct.jsonl", [row(x) for x in ("Test  7", "validation 1", "TRAIN 5", "own")])
    found = source(apart, **shares)
    # Without a share, whoever wrote that file answers for it.
    assert len(found.draw("en", "instruct")) == (1 if shares else 4)
    new = source(write("new.jsonl", [row("own"), row("new")])).draw("en", "more")
    assert texts(found.without(new, "en")) == (["new"] if shares else ["own", "new"])


def test_rows_in_common_need_a_share_each(write):
    path = write("all.jsonl", [row(f"text {i}") for i in range(10)])
    with pytest.raises(InputError, match=r"data.shares has no 'instruct', but test, validation"):
        source(path).draw("en", "instruct")
    with pytest.raises(InputError, match=r"data.shares has no 'test', but test, validation"):
        source(path, shares={"train": 0.9, "validation": 0.1}).draw("en", "train")
    with pytest.raises(InputError, match=r"data.shares names 'tset'; there are test, validation"):
        source(path, shares=FOUR | {"tset": 0.1})


def test_where_the_keys_of_the_test_are_kept_back_it_is_drawn_from_validation(
    apart, write, tmp_path, caplog
):
    for split, count, key in (("train", 9, "A"), ("validation", 200, "A"), ("test", 50, "")):
        choices = {"label": list("ABCDE"), "text": list("vwxyz")}
        write(
            f"en/{split}.jsonl",
            [
                {"question": f"{split} {i}?", "choices": choices, "answerKey": key}
                for i in range(count)
            ],
        )
    found = source(apart, "reasoning", rows={"train": 0, "validation": 50, "test": 50})
    test, validation = found.draw("en", "test"), found.draw("en", "validation")
    assert len(test) == len(validation) == 50
    assert not set(texts(test)) & set(texts(validation))
    assert all(x.text.startswith("validation") for x in [*test, *validation])
    assert "no row has an answer; test and validation rows are drawn from validation" in caplog.text


def test_no_article_is_torn_apart_in_any_language(write, tmp_path):
    articles = {"en": [], "de": []}
    for i in range(300):
        for language in articles:
            name = f"{language} {i}"
            article = {
                "section_name": ["one", "two"],
                "document": [f"{name} first", f"{name} second"],
                "summary": ["s1", "s2"],
            }
            if language != "en":
                article["english_url"] = [f"u{i}", f"u{i}"]
            url = f"u{i}" if language == "en" else f"v{i}"
            articles[language].append({"url": url, "article": article})
    for language, rows in articles.items():
        write(f"{language}.jsonl", rows)
    found = source(tmp_path / "{language}.jsonl", "summarization")
    splits = collections.defaultdict(set)
    for language in articles:
        for split in ("train", "validation", "test"):
            for example in found.draw(language, split):
                splits[example.text.split()[1]].add(split)
        assert sum(len(found.draw(language, x)) for x in ("train", "validation", "test")) == 600
    assert len(splits) == 300
    assert {len(some) for some in splits.values()} == {1}


def test_a_split_that_is_missing_is_named_where_its_rows_are_needed(apart, tmp_path):
    (tmp_path / "en" / "test.jsonl").unlink()
    found = source(apart)
    assert len(found.draw("en", "train")) == 100
    with pytest.raises(InputError, match=r"en/test.jsonl: no such file"):
        found.draw("en", "test")


def test_languages_are_told_apart_by_a_column(write):
    rows = [row(f"text {i}", language=("en", "ja")[i % 2]) for i in range(10)]
    path = write("all.jsonl", rows)
    found = source(path, language_field="language", names={"japanese": "ja"})
    assert texts(found.draw("japanese", "more")) == [f"text {i}" for i in range(1, 10, 2)]


LANGUAGES = {"en": "english", "de": "german", "fr": "french", "ja": "japanese", "zh": "chinese"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_real_sentiment_rows_load(realdata, language):
    path = realdata / "sentiment_tyqiangz" / "{language}" / "valid.csv"
    found = source(path, names=LANGUAGES, rows={"train": 200, "validation": 20, "test": 20})
    train = found.draw(language, "train")
    assert len(train) == 200
    # The files are sorted by label; what is drawn is not.
    assert len({x.target for x in train[:20]}) == 3
    assert len(found.draw(language, "test")) == 20


@pytest.mark.parametrize("language", LANGUAGES)
def test_real_sentiment_rows_of_several_files_are_shared_out(realdata, language):
    path = realdata / "sentiment_tyqiangz" / "{language}" / "*.csv"
    found = source(path, names=LANGUAGES, shares=FOUR)
    parts = {split: found.draw(language, split) for split in FOUR}
    asked = [x.asked for part in parts.values() for x in part]
    assert len(set(asked)) == len(asked)
    files = {"ja": 3000, "zh": 2989}
    assert len(asked) == pytest.approx(files.get(language, 2163), abs=5)
    for part in parts.values():
        assert {x.target for x in part} == {"positive", "neutral", "negative"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_real_questions_load(realdata, language):
    path = realdata / "derived_bmlama53_5choice" / "{language}" / "{split}.jsonl"
    found = source(path, "reasoning")
    for split in ("train", "validation", "test"):
        for example in found.draw(language, split):
            assert len(set(example.choices)) == 5
            assert example.target in "ABCDE"


def test_real_japanese_questions_load_by_other_fields(realdata):
    path = realdata / "reasoning_jcommonsenseqa_ja" / "{split}-v1.3.json"
    found = source(
        path,
        "reasoning",
        splits={"validation": "valid"},
        fields={
            "id": "q_id",
            "text": "question",
            "choices": "choice0,choice1,choice2,choice3,choice4",
            "target": "label",
        },
        rows={"train": 500, "validation": 100, "test": 100},
    )
    for split, count in (("train", 500), ("validation", 100), ("test", 100)):
        rows = found.draw("ja", split)
        assert len(rows) == count
        assert {x.target for x in rows} == set("ABCDE")


@pytest.mark.parametrize("language", LANGUAGES)
def test_real_articles_load(realdata, language):
    path = realdata / "wikilingua_hf_dummy" / "{language}.original_schema.json"
    fields = {"text": "document", "target": "summary", "group": "english_url|key_1"}
    found = source(path, "summarization", names=LANGUAGES, fields=fields)
    rows = found.draw(language, "more")
    assert len({x.group for x in rows}) == 3
    counts = {"en": 8, "de": 9, "fr": 9, "ja": 10, "zh": 8}
    assert len(rows) == counts[language]
    assert all(len(x.text) > len(x.target) > 0 for x in rows)


@pytest.mark.parametrize("language", LANGUAGES)
def test_real_summaries_load(realdata, language):
    path = realdata / "summarization_tldr" / "{language}.jsonl"
    fields = {"id": "id", "text": "source", "target": "target", "group": "id"}
    few = {"train": 100, "validation": 20, "test": 20}
    found = source(path, "summarization", fields=fields, rows=few)
    ids = {split: {x.group for x in found.draw(language, split)} for split in few}
    assert {split: len(some) for split, some in ids.items()} == few
    assert not ids["train"] & ids["test"]


def test_an_article_is_in_one_split_also_where_splits_lie_apart(tmp_path, write):
    fields = {"text": "text", "target": "summary", "group": "article"}
    for split in ("train", "validation", "test"):
        rows = [
            {"text": f"{split} {i}", "summary": "s", "article": f"u{i % 20}"} for i in range(20)
        ]
        rows += [{"text": f"{split} own", "summary": "s", "article": split}]
        write(f"en/{split}.jsonl", rows)
    few = {"train": 0, "validation": 0, "test": 5}
    found = source(tmp_path / "{language}/{split}.jsonl", "summarization", fields=fields, rows=few)
    groups = {x: {e.group for e in found.draw("en", x)} for x in ("train", "validation", "test")}
    assert len(groups["test"]) == 5
    assert not groups["test"] & groups["validation"]
    assert not (groups["test"] | groups["validation"]) & groups["train"]
    # Nor may new rows bring back an article that is held out.
    new = write(
        "new.jsonl",
        [{"text": f"new {x}", "summary": "s", "article": x} for x in (*groups["test"], "new")],
    )
    brought = source(new, "summarization", fields=fields).draw("en", "more")
    assert texts(found.without(brought, "en")) == ["new new"]
