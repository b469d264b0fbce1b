"""Summaries and themes: rows of every layout are read, outputs are scored by hand-made cases."""

import json

import pytest

from langmerge_jax.data.examples import Example
from langmerge_jax.data.fields import Row
from langmerge_jax.errors import InputError
from langmerge_jax.tasks.summarization import Summarization
from langmerge_jax.tasks.themes import Themes

HUB = {
    "id": "url",
    "text": "article.document",
    "target": "article.summary",
    "group": "article.english_url|url",
}


def summarization():
    return Summarization("Sum up:\n{text}", {}, 60, 20, encoder="", layer=None, encoder_batch=8)


def themes(fuzzy=1.0):
    return Themes("Themes of:\n{text}", {}, 200, 50, fuzzy=fuzzy)


def test_the_sections_of_an_article_are_examples_of_one_group():
    article = {"document": ["d1", "d2"], "summary": ["s1", "s2"]}
    english = summarization().read(Row({"url": "u", "article": article}, "f:1", HUB), "en")
    assert [(x.id, x.text, x.target, x.group) for x in english] == [
        ("u#0", "d1", "s1", "u"),
        ("u#1", "d2", "s2", "u"),
    ]
    article["english_url"] = ["u", "other"]
    german = summarization().read(Row({"url": "v", "article": article}, "f:1", HUB), "de")
    assert [x.group for x in german] == ["u", "other"]


def test_flat_rows_are_read_too():
    row = {"gem_id": "1", "gem_parent_id": "p", "source": "text", "target": "summary"}
    fields = {"id": "gem_id", "text": "source", "target": "target", "group": "gem_parent_id"}
    found = summarization().read(Row(row, "f:1", fields), "en")
    assert found == [Example("1", "en", "text", "summary", group="p")]


@pytest.mark.parametrize(
    ("article", "message"),
    [
        ({"document": ["a", "b"], "summary": ["s"]}, "lists that do not match: 2 of 'article.doc"),
        ({"document": ["a", " "], "summary": ["s", "t"]}, "the field 'article.document' is empty"),
        ({"document": ["a"], "summary": [None]}, "the field 'article.summary' is missing or no"),
        ({"document": ["a", "b"], "summary": "s"}, "several texts need as many targets"),
        ({"document": [], "summary": []}, "the field 'article.document' is empty"),
        ({}, "the field 'article.document' is missing or no text; the row has"),
    ],
)
def test_bad_articles_are_named(article, message):
    with pytest.raises(InputError, match=f"^f:9: {message}"):
        summarization().read(Row({"url": "u", "article": article}, "f:9", HUB), "en")


def test_an_article_is_cut_and_its_summary_is_not(tokenizer):
    task = summarization()
    example = Example("1", "en", "The screen is good. " * 30, "The screen is good.")
    (encoded,) = task.encode(tokenizer, [example])
    assert encoded.cut
    assert tokenizer.decode(encoded.answer) == " The screen is good.<|end|>"
    # Room for what may be generated, whatever the reference: what is asked is the same.
    assert len(encoded.prompt) <= 40
    assert task.prompts(tokenizer, [example]) == [encoded.prompt]
    long = Example("2", "en", "text", "The screen is good. " * 12)
    with pytest.raises(InputError, match=r"row '2' of 'en': task.max_length=60 leaves no room"):
        task.encode(tokenizer, [long])


def test_summaries_are_scored_in_every_script_with_the_ascii_value_beside():
    task = summarization()
    examples = [Example("1", "ja", "x", "猫が好き"), Example("2", "en", "x", "a good day")]
    first, second = task.judge(examples, ["犬が好き", "a good night"])
    assert first.parsed == "犬が好き"
    # Three of four characters; two of three pairs.
    assert first.scores["rouge1"] == pytest.approx(3 / 4)
    assert first.scores["rouge2"] == pytest.approx(2 / 3)
    assert first.scores["rougeL_ascii"] == 0
    assert second.scores["rougeL"] == second.scores["rougeL_ascii"] == pytest.approx(2 / 3)
    rows = [{"scores": x.scores} for x in (first, second)]
    assert task.measures.names[0] == "rougeL"
    assert task.measures.values(rows)["rougeL"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert task.scoring == {"rouge": "unicode-1"}


FIELDS = {"id": "id", "text": "comments", "target": "themes"}
ROW = {
    "id": "7",
    "comments": ["It came late.", "Die Box war kaputt."],
    "themes": [{"theme": "delivery", "examples": ["came late"]}],
}


def test_comments_become_lines_and_themes_json():
    (example,) = themes().read(Row(ROW, "f:1", FIELDS), "mix")
    assert example.text == "It came late.\nDie Box war kaputt."
    assert json.loads(example.target) == {"themes": ROW["themes"]}


@pytest.mark.parametrize("bad", [None, "delivery", [], [{"theme": "x"}], [{"examples": [3]}]])
def test_bad_themes_are_named(bad):
    with pytest.raises(InputError, match=r"^f:3: no themes; expected is a list of \{"):
        themes().read(Row(ROW | {"themes": bad}, "f:3", FIELDS), "en")


def test_the_rate_is_over_all_examples_and_malformed_outputs_are_counted():
    task = themes()
    (example,) = task.read(Row(ROW, "f:1", FIELDS), "mix")

    def output(*examples):
        return json.dumps({"themes": [{"theme": "any", "examples": list(examples)}]})

    outputs = [output("came late", "nothing"), output("Box", "kaputt", "ＤＩＥ"), "none", output()]
    judged = task.judge([example] * 4, outputs)
    rows = [{"parsed": x.parsed, "scores": x.scores} for x in judged]
    values = task.measures.values(rows)
    assert values == {"hallucination_rate": pytest.approx(2 / 5), "malformed": 1 / 4}
    assert [x.parsed is None for x in judged] == [False, False, True, False]
    assert judged[1].parsed["invented"] == ["ＤＩＥ"]
    with pytest.raises(InputError, match=r"evaluate\.fuzzy=0: give a share"):
        themes(fuzzy=0)
