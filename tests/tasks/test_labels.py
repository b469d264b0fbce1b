"""Prompts carry the whole wording, answers survive cutting, outputs are read as they are meant."""

import copy
import logging

import pytest

from langmerge_jax.data.examples import Example
from langmerge_jax.data.fields import Row
from langmerge_jax.errors import InputError
from langmerge_jax.tasks.labels import Reasoning, Sentiment

LABELS = ("positive", "neutral", "negative")
WORDS = {"de": {"positive": "gut", "neutral": "mittel", "negative": "nicht gut"}}
JA = {"ja": {"positive": "良い", "neutral": "普通", "negative": "良くない"}}


def sentiment(template, max_length=100, **more):
    settings = {"templates": {}, "max_new_tokens": 4, "labels": LABELS, "answers": {}, "names": {}}
    return Sentiment(template=template, max_length=max_length, **(settings | more))


def reasoning():
    return Reasoning(
        "{text}\n{choices}\nLetter:", {}, 200, 4, labels=("A", "B", "C"), answers={}, names={}
    )


def test_the_prompt_is_the_chat_message_and_the_answer_the_label_with_its_end(tokenizer):
    task = sentiment("Text: {text}\nMood?")
    (encoded,) = task.encode(tokenizer, [Example("1", "en", "The {text} is good.", "neutral")])
    prompt = tokenizer.decode(encoded.prompt)
    assert prompt == "<|begin|><|user|> Text: The {text} is good.\nMood?<|end|><|assistant|>"
    assert tokenizer.decode(encoded.answer) == " neutral<|end|>"


def test_without_a_chat_template_the_answer_follows_as_the_next_word(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    (encoded,) = sentiment("{text} Mood:").encode(plain, [Example("1", "en", "Good.", "positive")])
    assert tokenizer.decode([*encoded.prompt, *encoded.answer]) == " Good. Mood: positive<|end|>"


def test_a_language_has_words_and_a_template_of_its_own(tokenizer):
    task = sentiment("{text}\nMood?", templates={"de": "{text}\nStimmung?"}, answers=WORDS)
    examples = [Example("1", x, "Gut.", "negative") for x in ("de", "en")]
    german, english = task.encode(tokenizer, examples)
    assert "Stimmung?" in tokenizer.decode(german.prompt)
    assert tokenizer.decode(german.answer) == " nicht gut<|end|>"
    assert "Mood?" in tokenizer.decode(english.prompt)
    assert tokenizer.decode(english.answer) == " negative<|end|>"
    assert [tokenizer.decode(x) for x in task.options(tokenizer, "de")] == [
        " gut",
        " mittel",
        " nicht gut",
    ]


def test_a_long_text_is_cut_at_its_end_and_counted(tokenizer, caplog):
    task = sentiment("{text}\nMood?", 40)
    long = Example("1", "ja", "画面はとても良いです。" * 30, "negative")
    examples = [long, Example("2", "en", "Good.", "neutral")]
    with caplog.at_level(logging.WARNING):
        cut, short = task.encode(tokenizer, examples)
    assert (cut.cut, short.cut) == (True, False)
    assert 30 < len(cut) <= 40
    text = tokenizer.decode(cut.prompt)
    body = text.removeprefix("<|begin|><|user|> ").removesuffix("\nMood?<|end|><|assistant|>")
    assert body
    assert long.text.startswith(body)
    assert tokenizer.decode(cut.answer) == " negative<|end|>"
    assert "Good." in tokenizer.decode(short.prompt)
    assert "1 of 2 texts cut to 40 tokens" in caplog.text
    # What is asked does not depend on what is right.
    assert task.prompts(tokenizer, examples) == [cut.prompt, short.prompt]


def test_settings_that_cannot_be_are_refused(tokenizer):
    with pytest.raises(InputError, match=r"'Mood\?' has no place for \{text\}"):
        sentiment("Mood?")
    with pytest.raises(InputError, match=r"no place for \{choices\}"):
        Reasoning("{text}", {}, 40, 4, labels=("A", "B"), answers={}, names={})
    task = sentiment("{text}" + "Mood? " * 50, 40)
    with pytest.raises(InputError, match=r"row '1' of 'en': task.max_length=40 leaves no room"):
        task.encode(tokenizer, [Example("1", "en", "Good.", "neutral")])
    with pytest.raises(InputError, match="two or more"):
        sentiment("{text}", labels=("good",))
    with pytest.raises(InputError, match=r"task.answers.de=.*give each of positive, neutral"):
        sentiment("{text}", answers={"de": {"positive": "gut", "neutral": "gut", "negative": "x"}})


@pytest.mark.parametrize(
    ("output", "language", "label"),
    [
        ("negative", "en", "negative"),
        (" Positive.\n", "en", "positive"),
        ("The sentiment is neutral, not negative.", "en", "neutral"),
        ("ｎｅｕｔｒａｌ", "en", "neutral"),
        # Not within another word.
        ("unpositively odd", "en", None),
        ("", "en", None),
        # Of two that start alike, or within each other, the longer.
        ("Es ist nicht gut.", "de", "negative"),
        ("gut", "de", "positive"),
        # Beside scripts without spaces, and in them.
        ("これは良いです", "ja", "positive"),
        ("この製品は良くないと思います", "ja", "negative"),
        ("とても良いです", "ja", "positive"),
    ],
)
def test_outputs_are_read(output, language, label):
    task = sentiment("{text}", answers=WORDS | JA)
    (judged,) = task.judge([Example("1", language, "text", "negative")], [output])
    assert judged.parsed == label
    wanted = {"right": float(label == "negative"), "malformed": float(label is None)}
    assert judged.scores == wanted


def test_choices_stand_behind_their_letters(tokenizer):
    example = Example("1", "en", "Where {choices}?", "B", ("sea", "bank", "{text}"))
    assert reasoning().message(example) == "Where {choices}?\nA. sea\nB. bank\nC. {text}\nLetter:"
    (encoded,) = reasoning().encode(tokenizer, [example])
    assert tokenizer.decode(encoded.answer) == " B<|end|>"


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (C) ", "C"),
        ("**B.**", "B"),
        ("答えはBです", "B"),
        ("选择C项", "C"),
        ("It is a B.", "B"),
        ("A good answer is B.", "B"),
        ("La respuesta a esta pregunta es B", "B"),
        ("C'est la réponse B", "B"),
        ("B) bank, because A is wet", "B"),
        ("A and B are possible", "A"),
        ("ABC", None),
        ("e.g. nothing", None),
        ("", None),
    ],
)
def test_letters_are_read_as_choices_are_named(output, letter):
    assert reasoning().parse(output, "en") == letter


def test_labels_of_a_few_letters_are_read_beside_kana():
    assert sentiment("{text}").parse("これはpositiveです", "ja") == "positive"
    assert sentiment("{text}").parse("判定：NEGATIVE。", "ja") == "negative"
    assert sentiment("{text}").parse("unpositivé", "fr") is None


MCSQA = {
    "id": "id",
    "text": "question",
    "choices": "choices.text",
    "letters": "choices.label",
    "target": "answerKey",
}


def mcsqa(key="B", texts=("sea", "bank", "sky"), letters=("A", "B", "C"), question="Where?"):
    choices = {"label": list(letters), "text": list(texts)}
    return {"id": "q1", "question": question, "choices": choices, "answerKey": key}


def test_questions_are_read_by_letter_by_other_letters_and_by_number():
    task = reasoning()
    wanted = [Example("q1", "en", "Where?", "B", ("sea", "bank", "sky"))]
    assert task.read(Row(mcsqa(), "f:1", MCSQA), "en") == wanted
    other = mcsqa("2", letters=("1", "2", "3"))
    assert task.read(Row(other, "f:1", MCSQA), "en") == wanted
    numbered = mcsqa(2, letters=(1, 2, 3))
    assert task.read(Row(numbered, "f:1", MCSQA), "en") == wanted
    flat = {"q_id": "q1", "q": "Where?", "c0": "sea", "c1": "bank", "c2": "sky", "label": 1}
    fields = {"id": "q_id", "text": "q", "choices": "c0,c1,c2", "target": "label"}
    assert task.read(Row(flat, "f:1", fields), "en") == wanted


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (mcsqa("D"), "f:7: wrong answer key 'D'; there are A, B, C"),
        (mcsqa(""), "f:7: wrong answer key ''"),
        (mcsqa(3), "f:7: wrong answer key 3"),
        (mcsqa(letters=("A", "B")), "f:7: wrong answer key 'B'; there are A, B$"),
        (mcsqa(question="half \ud83d"), "f:7: the field 'question' has half of a character"),
        (mcsqa(texts=("sea", "bank")), "f:7: 2 choices; this task has 3"),
        (mcsqa(texts=("sea", "bank", "sea")), "f:7: two choices are the same"),
        (mcsqa(texts=("sea", " ", "sky")), "f:7: the field 'choices.text' is empty"),
        (mcsqa(question=""), "f:7: the field 'question' is empty"),
        ({"answerKey": "A"}, r"f:7: the field 'question' is missing or no text; the row has \["),
    ],
)
def test_bad_questions_are_named(row, message):
    with pytest.raises(InputError, match=message):
        reasoning().read(Row(row, "f:7", MCSQA), "en")


def test_labels_of_another_name_are_translated():
    task = sentiment("{text}", names={"0": "negative", "pos": "positive"})
    fields = {"text": "text", "target": "label"}
    for value, label in ((0, "negative"), ("pos", "positive"), ("neutral", "neutral")):
        (example,) = task.read(Row({"text": "x", "label": value}, "f:1", fields), "en")
        assert example.target == label
    with pytest.raises(InputError, match="f:1: unknown label 'happy'; known: positive, neutral"):
        task.read(Row({"text": "x", "label": "happy"}, "f:1", fields), "en")
