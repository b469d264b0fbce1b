"""Prompts carry the whole wording, answers survive cutting, batches repeat."""

import logging

import numpy as np
import pytest

from langmerge_jax.data.batching import bucket, training_batches
from langmerge_jax.data.sources import Example
from langmerge_jax.data.tasks import ClassificationTask, Encoded
from langmerge_jax.errors import InputError

LABELS = ("positive", "neutral", "negative")


def test_the_prompt_is_the_chat_message_and_the_answer_the_label_with_its_end(tokenizer):
    task = ClassificationTask("Text: {text}\nMood?", LABELS, 100)
    (encoded,) = task.encode(tokenizer, [Example("1", "en", "The {text} is good.", "neutral")])
    prompt = tokenizer.decode(encoded.prompt)
    assert prompt == "<|begin|><|user|> Text: The {text} is good.\nMood?<|end|><|assistant|>"
    assert tokenizer.decode(encoded.answer) == " neutral<|end|>"


def test_without_a_chat_template_the_answer_follows_as_the_next_word(tokenizer):
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    task = ClassificationTask("{text} Mood:", LABELS, 100)
    (encoded,) = task.encode(plain, [Example("1", "en", "Good.", "positive")])
    assert tokenizer.decode([*encoded.prompt, *encoded.answer]) == " Good. Mood: positive<|end|>"


def test_a_long_text_is_cut_at_its_end_and_counted(tokenizer, caplog):
    task = ClassificationTask("{text}\nMood?", LABELS, 40)
    long = Example("1", "ja", "画面はとても良いです。" * 30, "negative")
    with caplog.at_level(logging.WARNING):
        cut, short = task.encode(tokenizer, [long, Example("2", "en", "Good.", "neutral")])
    assert 30 < len(cut) <= 40
    text = tokenizer.decode(cut.prompt)
    body = text.removeprefix("<|begin|><|user|> ").removesuffix("\nMood?<|end|><|assistant|>")
    assert body
    assert long.text.startswith(body)
    assert tokenizer.decode(cut.answer) == " negative<|end|>"
    assert "Good." in tokenizer.decode(short.prompt)
    assert "1 of 2 texts cut to 40 tokens" in caplog.text


def test_a_prompt_without_room_or_place_for_the_text_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"no placeholder \{text\}"):
        ClassificationTask("Mood?", LABELS, 40)
    task = ClassificationTask("{text}" + "Mood? " * 50, LABELS, 40)
    with pytest.raises(InputError, match="max_length=40 leaves no room"):
        task.encode(tokenizer, [Example("1", "en", "Good.", "neutral")])


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own():
    data = [Encoded((i,), (0,)) for i in range(11)]
    batches = list(training_batches(data, rows=4, epochs=3, seed=0, name="en"))
    assert [sorted(map(len, batches[i : i + 3])) for i in (0, 3, 6)] == [[3, 4, 4]] * 3
    epochs = [[e for batch in batches[i : i + 3] for e in batch] for i in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(e.prompt for e in epoch) == [(i,) for i in range(11)]
    assert epochs[0] != epochs[1]
    assert batches == list(training_batches(data, rows=4, epochs=3, seed=0, name="en"))
    assert batches != list(training_batches(data, rows=4, epochs=3, seed=0, name="de"))


def test_rows_of_similar_length_share_a_batch_and_adapters_are_long_together():
    rng = np.random.default_rng(0)
    lengths = {}
    for name in ("en", "de"):
        data = [Encoded((0,) * n, (0,)) for n in rng.integers(1, 100, 640)]
        batches = list(training_batches(data, rows=8, epochs=1, seed=0, name=name))
        lengths[name] = [max(map(len, batch)) for batch in batches]
        assert sum(lengths[name]) * 8 < 1.1 * sum(map(len, data))
        assert lengths[name] != sorted(lengths[name])
    assert np.corrcoef(lengths["en"], lengths["de"])[0, 1] > 0.95


def test_the_smallest_bucket_that_holds_a_row_is_taken():
    assert [bucket(n, (64, 16, 32)) for n in (1, 16, 17, 64)] == [16, 16, 32, 64]
    with pytest.raises(InputError, match=r"65 tokens fit no length bucket of \(64, 16, 32\)"):
        bucket(65, (64, 16, 32))
