"""ROUGE equals rouge-score on English, and values worked out by hand on other scripts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import tokenizers

from langmerge_jax.evaluation.rouge import ROUGE, UnicodeTokenizer, rouge

TOKENS = UnicodeTokenizer()


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_ascii_falls_into_the_tokens_of_rouge_score(text):
    assert TOKENS.tokenize(text) == tokenizers.DefaultTokenizer(use_stemmer=False).tokenize(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Größe: Übermut!", ["größe", "übermut"]),
        ("画面がABC点", ["画", "面", "が", "abc", "点"]),
        # Half-width kana with its voicing mark, and full-width Latin.
        ("ｶﾞ Ａｂ", ["ガ", "ab"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("ทำดี", ["ทํ", "า", "ดี"]),
        ("e\u0301te\u0301", ["été"]),
        # A mark that follows nothing is no token.
        ("\u0301 a", ["a"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("", []),
        ("… !", []),
    ],
)
def test_tokens_of_other_scripts(text, tokens):
    assert TOKENS.tokenize(text) == tokens


@pytest.mark.parametrize(
    ("reference", "output", "one", "two", "longest"),
    [
        # 5 and 4 tokens, of which 4 and 3 pairs in common.
        ("the small cat sat down", "the small cat sat", 8 / 9, 6 / 7, 8 / 9),
        # 猫が好き and 犬が好き: 3 of 4 characters, 2 of 3 pairs.
        ("猫が好き", "犬が好き", 3 / 4, 2 / 3, 3 / 4),
        # 我爱你们 and 你们爱我: all characters, one of three pairs, 你们 as the longest.
        ("我爱你们", "你们爱我", 1, 1 / 3, 1 / 2),
        # Three words each; only the first two stand in both, side by side.
        ("schöne größe hier", "schöne größe dort", 2 / 3, 1 / 2, 2 / 3),
        ("नमस्ते दुनिया", "नमस्ते भारत", 1 / 2, 0, 1 / 2),
        ("word", "", 0, 0, 0),
    ],
)
def test_scores_by_hand(reference, output, one, two, longest):
    found = rouge([reference], [output])
    assert [found[name][0] for name in ROUGE] == pytest.approx([one, two, longest])


def test_the_ascii_scores_are_those_that_published_tables_hold():
    assert rouge(["猫が好き"], ["猫が好き"], ascii_only=True)["rouge1"][0] == 0
    # niña falls into ni and a, which also stand in nia… as rouge-score has it.
    split = rouge(["niña"], ["ni a"], ascii_only=True)["rouge1"][0]
    assert split == 1
    assert rouge(["niña"], ["ni a"])["rouge1"][0] == 0
    english = (["a b c", "d e"], ["a c", "e d"])
    for name, values in rouge(*english).items():
        np.testing.assert_array_equal(values, rouge(*english, ascii_only=True)[name])


def test_each_output_needs_a_reference():
    with pytest.raises(ValueError, match="is longer than"):
        rouge(["a"], ["a", "b"])
