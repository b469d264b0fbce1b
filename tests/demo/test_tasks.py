"""The demo's other tasks: answers are checked against the texts, read by rules of their own."""

import collections
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator

import numpy as np
import pytest

from langmerge_jax.demo import stage
from langmerge_jax.demo.corpus import CorpusSettings, write_corpus
from langmerge_jax.demo.grammar import (
    DEGREES,
    LANGUAGES,
    RELATIONS,
    Clause,
    GrammarSettings,
    LexiconSizes,
    Review,
    impression,
    render_clauses,
)
from langmerge_jax.demo.speaker import WORDINGS, Speaker
from langmerge_jax.demo.tasks import MIX, TASKS, Place, reasoning, summarization, themes
from langmerge_jax.errors import InputError
from langmerge_jax.evaluation.themes import read as read_themes
from langmerge_jax.lifecycle.run import Run
from tests import tiny

ROWS = {"train": 120, "update": 41, "validation": 11, "test": 80}
CONTENT = {"reasoning": "question", "summarization": "document", "themes": "comments"}

# What denies a predicate, wherever it stands after its subject.
DENIALS = {
    "en": r"\bnot\b|isn't|anything but",
    "de": r"\bnicht\b|kein bisschen|alles andere als",
    "fr": r"\bn'est|\bne soit",
    "ja": r"ない|なく|ません|(?<!かかわら)ず(?:、|$)",
    "zh": r"不(?!过)",
    "es": r"\bno es\b",
}

# A word of every sentence, looked for in this order: "es" is German as well.
MARKS = {
    "de": r"\bist\b",
    "en": r"\bis(?:n't)?\b",
    "fr": r"\b(?:est|soit)\b",
    "es": r"\bes\b",
    "ja": r"[ぁ-ん]",
    "zh": r"[一-龥]",
}


def settings(**changes):
    grammar = GrammarSettings(zipf=0.5)
    usual = {
        "languages": tuple(LANGUAGES),
        "rows": {},
        "unlabelled": 0,
        "verdict": 0.0,
        "lexicon": LexiconSizes(),
        "grammar": grammar,
        "unlabelled_grammar": grammar,
        "seed": 3,
        "tasks": dict.fromkeys(TASKS, ROWS),
    }
    return CorpusSettings(**usual | changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    write_corpus(directory, settings())
    return directory


def rows_of(directory, language, task, split):
    lines = (directory / language / task / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in lines.splitlines()]


def all_rows(directory, language, task):
    return [row for split in ROWS for row in rows_of(directory, language, task, split)]


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*.*"))
    }


def nouns(code):
    return [LANGUAGES[code].noun(aspect) for aspect in LANGUAGES[code].lexicon.aspects]


def opinions(code, text):
    """What a text says of each aspect, in order: 1 praise, -1 blame, 0 neither; from its words."""
    lexicon = LANGUAGES[code].lexicon
    polarity = {
        # Without the ending that Japanese inflects.
        re.sub("(?:(?<=て)い)?.$", "", word) if code == "ja" else word: sign
        for sign, words in ((1, lexicon.positive), (-1, lexicon.negative), (0, lexicon.neutral))
        for word in words
    }
    every = "|".join(sorted(nouns(code), key=len, reverse=True))
    places = list(re.finditer(rf"(?<![a-z])(?:{every})(?![a-z])", text))
    ends = [match.start() for match in places[1:]] + [len(text)]
    found = {}
    for match, end in zip(places, ends, strict=True):
        words = text[match.end() : end]
        predicate = max((word for word in polarity if word in words), key=len)
        denied = polarity[predicate] and re.search(DENIALS[code], words)
        assert match.group() not in found, text
        found[match.group()] = -polarity[predicate] if denied else polarity[predicate]
    return found


@dataclasses.dataclass(frozen=True)
class Repeating(Speaker):
    """Says given reviews, one after another."""

    reviews: Iterator[Review]

    def speak(self, rng):
        review = next(self.reviews)
        return review, *render_clauses(review, self.language, rng, self.grammar)


def repeating(code, *reviews):
    grammar = GrammarSettings(opening=0.0)
    return [Repeating(LANGUAGES[code], LexiconSizes(), grammar, iter(reviews))]


# Reasoning


@pytest.mark.parametrize("code", LANGUAGES)
def test_one_of_five_choices_is_what_the_text_praises_or_blames(corpus, code):
    for row in all_rows(corpus, code, "reasoning"):
        assert list(row) == ["id", "question", "question_concept", "choices", "answerKey"]
        wording, question = WORDINGS[code], row["question"]
        sign = 1 if question.endswith(wording.praised) else -1
        asked = wording.praised if sign == 1 else wording.criticised
        assert question.endswith(asked)
        said = opinions(code, question.removesuffix(asked))
        choices = dict(zip(row["choices"]["label"], row["choices"]["text"], strict=True))
        assert list(choices) == list("ABCDE")
        assert len(set(choices.values()) & set(nouns(code))) == 5
        assert len(said) == 2
        assert said.keys() <= set(choices.values())
        assert [label for label, noun in choices.items() if said.get(noun) == sign] == [
            row["answerKey"]
        ]
        assert row["question_concept"] == next(iter(said))


def test_neither_the_place_of_a_choice_nor_the_concept_gives_the_answer_away(corpus):
    rows = [row for code in LANGUAGES for row in all_rows(corpus, code, "reasoning")]
    places = collections.Counter(row["answerKey"] for row in rows)
    # Five standard deviations around a fifth.
    margin = 5 * (len(rows) * 0.2 * 0.8) ** 0.5
    assert all(abs(places[letter] - len(rows) / 5) < margin for letter in "ABCDE")
    concepts = [answer(row) == row["question_concept"] for row in rows]
    assert 0.4 < np.mean(concepts) < 0.6


def answer(row):
    return row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]


def test_answers_agree_with_the_sentiment_of_a_clause():
    """For every pair of opinions: the answer alone would leave the impression asked for."""
    signed = itertools.product((1, -1), (False, True), DEGREES)
    first = [Clause(0, 3, *sense) for sense in signed] + [Clause(0, 3, 0)]
    second = [dataclasses.replace(clause, aspect=1, predicate=4) for clause in first]
    rng, place = np.random.default_rng(0), Place("test", 0, 1)
    for main, other, relation in itertools.product(first, second, RELATIONS[1:]):
        left = [impression(Review(clause)) for clause in (main, other)]
        unclear = [word for word in ("positive", "negative") if left.count(word) == 1]
        drawn = reasoning(place, repeating("en", Review(main, other, relation)), rng)
        assert (drawn is None) == (not unclear)
        if drawn is not None:
            row = drawn[1]
            wanted = "positive" if row["question"].endswith("praised?") else "negative"
            assert answer(row) == ("battery", "screen")[left.index(wanted)]
    assert reasoning(place, repeating("en", Review(first[0])), rng) is None


# Summarization


@pytest.mark.parametrize(
    ("code", "summary"),
    [
        ("en", "Good: screen, battery. Bad: price."),
        ("de", "Lob: Bildschirm, Akku. Tadel: Preis."),
        ("fr", "Points forts : écran, micro. Points faibles : prix."),
        ("ja", "良い点：画面、バッテリー。悪い点：価格。"),
        ("zh", "优点：屏幕、电池。缺点：价格。"),
        ("es", "A favor: monitor, micrófono. En contra: precio."),
    ],
)
def test_a_summary_names_what_is_praised_then_what_is_criticised(code, summary):
    not_bad, good, neutral = Clause(0, 0, -1, True, "weak"), Clause(1, 0, 1), Clause(3, 0, 0)
    not_good = Clause(2, 1, 1, negated=True)
    speakers = repeating(
        code,
        Review(not_bad, good, "but"),  # "the screen is good, but the battery is not very bad"
        Review(not_good, neutral, "and"),
        Review(dataclasses.replace(good, predicate=2), not_good, "but"),  # both spoken of already
        Review(neutral),
    )
    _, row = summarization(Place("test", 0, 1), speakers, np.random.default_rng(0))
    assert row["summary"] == summary


@pytest.mark.parametrize("code", LANGUAGES)
def test_a_summary_agrees_with_its_document(corpus, code):
    wording = WORDINGS[code]
    for row in all_rows(corpus, code, "summarization"):
        assert list(row) == ["id", "url", "section_name", "document", "summary"]
        said = opinions(code, row["document"])
        assert len(said) >= 2
        lines = []
        for sign, line in ((1, wording.good), (-1, wording.bad)):
            named = [noun for noun, found in said.items() if found == sign]
            lines += [line.format(wording.comma.join(named))] if named else []
        assert row["summary"] == LANGUAGES[code].space.join(lines) != ""


def test_articles_have_two_or_three_sections_in_one_split_of_every_language(corpus):
    splits = collections.defaultdict(set)
    for code, split in itertools.product(LANGUAGES, ROWS):
        rows = rows_of(corpus, code, "summarization", split)
        sections = collections.Counter(row["url"] for row in rows)
        assert set(sections.values()) == {2, 3}
        assert len({(row["url"], row["section_name"]) for row in rows}) == len(rows)
        for url in sections:
            splits[url].add(split)
        urls = [row["url"] for row in rows]
        assert urls == [row["url"] for row in rows_of(corpus, "en", "summarization", split)]
    assert all(len(found) == 1 for found in splits.values())


@pytest.mark.parametrize("rows", range(2, 40))
def test_rows_of_an_article_follow_one_another_and_are_numbered_from_one(rows):
    places = [Place("test", number, rows).section for number in range(rows)]
    sizes = collections.Counter(article for article, _ in places)
    assert list(sizes) == list(range(len(sizes)))
    assert set(sizes.values()) <= {2, 3}
    assert places == [(a, i) for a, size in sizes.items() for i in range(1, size + 1)]


# Themes


@pytest.mark.parametrize("code", [*LANGUAGES, MIX])
def test_examples_are_verbatim_and_speak_of_their_theme(corpus, code):
    for row in all_rows(corpus, code, "themes"):
        assert list(row) == ["id", "language", "comments", "themes"]
        assert row["language"] == code
        assert len(row["comments"]) in (2, 3)
        quoted = read_themes(json.dumps(row, ensure_ascii=False), "\n".join(row["comments"]))
        assert quoted.examples
        assert (quoted.invented, quoted.malformed) == ((), False)
        for theme in row["themes"]:
            assert len(set(theme["examples"])) == len(theme["examples"]) > 0
            for example in theme["examples"]:
                assert theme["theme"] in example
                assert any(example in comment for comment in row["comments"])


@pytest.mark.parametrize("code", LANGUAGES)
def test_themes_are_all_aspects_that_the_comments_speak_of(corpus, code):
    for row in all_rows(corpus, code, "themes"):
        said = [(comment, opinions(code, comment)) for comment in row["comments"]]
        assert {theme["theme"] for theme in row["themes"]} == {
            n for _, found in said for n in found
        }
        for theme in row["themes"]:
            for example in theme["examples"]:
                # One clause, which says of the theme what its comment does.
                found = opinions(code, example)
                assert any(example in x and found.items() <= o.items() for x, o in said)
                assert list(found) == [theme["theme"]]


def test_a_theme_of_two_comments_has_both_clauses():
    good, bad = Clause(0, 0, 1), Clause(0, 0, -1)
    speakers = repeating("ja", Review(good, Clause(1, 0, -1), "but"), Review(bad))
    _, row = themes(Place("test", 0, 1), speakers, np.random.default_rng(2))
    found = {theme["theme"]: theme["examples"] for theme in row["themes"]}
    assert list(found) == ["画面", "バッテリー"]
    assert [re.sub("この(?:製品の)?", "", example) for example in found["バッテリー"]] == [
        "バッテリーは良いです",
        "バッテリーは悪いです",
    ]


def test_a_clause_that_two_comments_share_is_quoted_once():
    shared = Review(Clause(0, 0, 1))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        comments, row = themes(Place("test", 0, 1), repeating("zh", *[shared] * 3), rng)
        examples = row["themes"][0]["examples"]
        assert sorted(examples) == sorted({comment.rstrip("。") for comment in comments})


def test_a_mixed_row_has_every_comment_in_another_language(corpus):
    languages = collections.Counter()
    for row in all_rows(corpus, MIX, "themes"):
        spoken = [
            next(code for code, word in MARKS.items() if re.search(word, comment))
            for comment in row["comments"]
        ]
        assert len(set(spoken)) == len(spoken)
        languages.update(spoken)
    assert languages.keys() == LANGUAGES.keys()


# Files


@pytest.mark.parametrize("task", TASKS)
def test_no_text_is_there_twice_whatever_the_split(corpus, task):
    texts = []
    for code in [*LANGUAGES, MIX] if task == "themes" else LANGUAGES:
        rows = all_rows(corpus, code, task)
        assert len(rows) == sum(ROWS.values())
        ids = {row["id"] for row in rows}
        assert ids == {f"{s}-{number}" for s, count in ROWS.items() for number in range(count)}
        for row in rows:
            found = row[CONTENT[task]]
            if task == "reasoning":
                wording = WORDINGS[code]
                found = found.removesuffix(wording.praised).removesuffix(wording.criticised)
            texts += [found] if isinstance(found, str) else found
    assert len(set(texts)) == len(texts)


def test_only_themes_are_mixed_and_only_of_two_languages(corpus, tmp_path):
    assert [path.name for path in (corpus / MIX).iterdir()] == ["themes"]
    write_corpus(tmp_path, settings(languages=("en",), tasks={"themes": {"test": 2}}))
    assert not (tmp_path / MIX).exists()


def test_a_row_depends_on_seed_task_language_and_split_alone(corpus, tmp_path):
    few = {"reasoning": {"train": 120}, "themes": {"train": 120}}
    write_corpus(tmp_path / "same", settings(languages=("ja", "en"), tasks=few))
    known, same = contents(corpus), contents(tmp_path / "same")
    assert same.keys() == {
        *("en/unlabelled.txt", "en/reasoning/train.jsonl", "en/themes/train.jsonl"),
        *("ja/unlabelled.txt", "ja/reasoning/train.jsonl", "ja/themes/train.jsonl"),
        "mix/themes/train.jsonl",
    }
    assert all(same[path] == known[path] for path in same if not path.startswith(MIX))
    write_corpus(tmp_path / "again", settings(languages=("ja", "en"), tasks=few))
    assert contents(tmp_path / "again") == same
    write_corpus(tmp_path / "other", settings(languages=("ja", "en"), tasks=few, seed=4))
    other = contents(tmp_path / "other")
    assert all(other[path] != same[path] for path in same if path.endswith(".jsonl"))


def test_sentiment_is_to_the_byte_what_it_was_without_tasks(tmp_path):
    """The digest was taken of a corpus written before there were other tasks."""
    rows = {"instruct": 20, "train": 40, "update": 20, "validation": 5, "test": 20}
    usual = GrammarSettings()
    unlabelled = GrammarSettings(opening=0.05)
    write_corpus(
        tmp_path,
        settings(
            rows=rows, unlabelled=60, verdict=0.8, grammar=usual, unlabelled_grammar=unlabelled
        ),
    )
    digest = hashlib.sha256()
    for path, content in contents(tmp_path).items():
        if path.count("/") == 1:
            digest.update(path.encode() + content)
    wanted = "1760d806ee52dd4c60bfa7a64c69ca116ced69223bca67aeafc488476e56f6b6"
    assert digest.hexdigest() == wanted


def test_an_unknown_task_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"task 'poetry' has no generator; there are \['reas"):
        write_corpus(tmp_path, settings(tasks={"poetry": {"train": 1}}))
    with pytest.raises(InputError, match=r"lexicon\.aspects=4: the task 'reasoning' offers 5"):
        write_corpus(tmp_path, settings(lexicon=LexiconSizes(aspects=4)))
    assert not list(tmp_path.iterdir())


def few_texts(seed=0):
    """Settings for which English has ninety: five aspects, three determiners, six predicates."""
    single = GrammarSettings((1, 0, 0, 0, 0), negation=0.0, weak=0.0, strong=0.0, opening=0.0)
    lexicon = LexiconSizes(5, 2, 2, 2)
    return settings(languages=("en",), lexicon=lexicon, grammar=single, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_no_comment_is_there_twice_though_texts_are_scarce(tmp_path, seed):
    tasks = {"themes": {"train": 22, "test": 2}}
    write_corpus(tmp_path, dataclasses.replace(few_texts(seed), tasks=tasks))
    rows = [row for split in tasks["themes"] for row in rows_of(tmp_path, "en", "themes", split)]
    comments = [comment for row in rows for comment in row["comments"]]
    assert len(set(comments)) == len(comments) == 72


def test_more_rows_than_there_are_texts_are_refused(tmp_path):
    few = few_texts()
    with pytest.raises(InputError, match=r"'themes' in 'en': no new row .* 'train-\d\d'; ask for"):
        write_corpus(tmp_path, dataclasses.replace(few, tasks={"themes": {"train": 100}}))
    with pytest.raises(InputError, match=r"'reasoning' in 'en': no new row .* 'train-0'; ask for"):
        write_corpus(tmp_path, dataclasses.replace(few, tasks={"reasoning": {"train": 1}}))


def test_the_stage_hands_the_tasks_of_its_config_over(tmp_path, monkeypatch):
    config = tiny.get_config()
    config.cpu_devices = 0
    config.demo.corpus.tasks = {"themes": {"train": 3, "test": 2}}
    monkeypatch.setattr(stage, "build_base", lambda *_, **__: None)
    stage.prepare(Run(config, tmp_path))
    for language in (*config.demo.corpus.languages, MIX):
        assert [
            len(rows_of(tmp_path / "corpus", language, "themes", split))
            for split in ("train", "test")
        ] == [3, 2]
