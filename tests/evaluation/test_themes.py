"""Hallucination rates of outputs made by hand."""

import json

import pytest

from langmerge_jax.evaluation.themes import read

SOURCE = "Delivery was late.\nThe  “box” was torn, ＡＢＣ shop! 配送が遅い。"


def output(*examples):
    return json.dumps({"themes": [{"theme": "any", "examples": list(examples)}]})


@pytest.mark.parametrize(
    "example",
    [
        "Delivery was late.",
        # White space, also across lines, and marks around it.
        "Delivery\twas\n late.",
        "late. The",
        ' "Delivery was late." ',
        "„Delivery was late.“",
        # Quotation marks of another kind, full-width forms either way, half-width kana.
        'The "box" was torn',
        "The ″box″ was torn",
        "ABC shop！",
        "配送が遅い。",
    ],
)
def test_what_stands_in_the_input_is_found(example):
    found = read(output(example), SOURCE)
    assert (len(found.examples), found.invented, found.malformed) == (1, (), False)


@pytest.mark.parametrize("example", ["Delivery is late.", "delivery was late", "配送が早い。"])
def test_what_does_not_is_invented(example):
    assert read(output(example), SOURCE).invented == (example,)


@pytest.mark.parametrize(
    "text",
    [
        'Here they are: {"themes": [{"theme": "a", "examples": ["box"]}]} I hope this helps {:',
        '```json\n[{"theme": "a", "examples": ["box"]}]\n```',
        '{"answer": {"themes": [{"theme": "a", "examples": ["box"]}]}}',
        'As asked [1]: {"themes": [{"theme": "a", "examples": ["box"], "more": {"x": [1]}}]}',
    ],
)
def test_text_around_the_value_is_passed_over(text):
    assert read(text, SOURCE).examples == ("box",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"themes": [{"theme": "a", "examples": ["box"]',
        '{"themes": [{"theme": "a", "examples": []',
        "[" * 5000,
        '{"themes": "box"}',
        '{"themes": [{"theme": "a", "examples": "box"}]}',
        '{"themes": [{"theme": "a", "examples": [{"text": "box"}]}]}',
    ],
)
def test_malformed_outputs_are_counted(text):
    assert read(text, SOURCE).malformed


def test_an_empty_example_is_none():
    assert read(output("", ' "" ', "box"), SOURCE).examples == ("box",)


def test_fuzzy_takes_examples_of_which_enough_stands_in_the_input():
    # 12 of 17 characters in one piece: "Delivery was".
    example = "Delivery was slow"
    assert read(output(example), SOURCE).invented == (example,)
    assert read(output(example), SOURCE, fuzzy=0.9).invented == (example,)
    assert read(output(example), SOURCE, fuzzy=13 / 17).invented == ()
    assert read(output(example), SOURCE, fuzzy=13.5 / 17).invented == (example,)


def test_half_a_character_is_invented_and_can_be_written():
    found = read(r'{"themes": [{"theme": "a", "examples": ["box \ud83d"]}]}', SOURCE)
    assert found.invented == ("box ?",)
