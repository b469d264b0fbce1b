"""The demo's tokenizer."""

import numpy as np

from configs import demo
from langmerge_jax.demo.base import train_tokenizer
from langmerge_jax.demo.grammar import LABELS, LANGUAGES, LexiconSizes, render, sample

SIZES = LexiconSizes(**demo.get_config().demo.corpus.lexicon)


def texts(seed, count):
    rng = np.random.default_rng(seed)
    reviews = [sample(rng, SIZES) for _ in range(count)]
    return [render(review, language, rng) for review in reviews for language in LANGUAGES.values()]


def test_tokenizer_keeps_text_and_does_not_spell_words_in_bytes():
    tokenizer = train_tokenizer([*texts(0, 1500), *["positive neutral negative"] * 1500], 2560)
    pieces = unreadable = 0
    for text in texts(1, 200):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == " " + text
        pieces += len(ids)
        unreadable += sum("\ufffd" in tokenizer.decode([token]) for token in ids)
    assert unreadable < 0.02 * pieces
    for word in LABELS:
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1


def test_a_token_never_spans_two_scripts():
    tokenizer = train_tokenizer(texts(0, 1500), 2560)
    ids = tokenizer("画面は良くありません", add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([token]).strip() for token in ids][1:4] == ["画面", "は", "良"]
