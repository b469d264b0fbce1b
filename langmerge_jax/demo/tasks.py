"""The demo's other tasks: reasoning, summarization and themes, with answers read off the meaning.

Their texts are reviews of the same grammar as the sentiment rows, and their rows have the fields of
the public data sets that each task stands for.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from langmerge_jax.demo.grammar import LANGUAGES, GrammarSettings, LexiconSizes, value
from langmerge_jax.demo.speaker import Speaker
from langmerge_jax.errors import InputError

logger = logging.getLogger(__name__)

# The pseudo language of rows whose comments come from several languages.
MIX = "mix"
LETTERS = ("A", "B", "C", "D", "E")
# Reviews that a document is made of, at most.
REVIEWS = 4
# Draws without a new row after which there are taken to be no more.
PATIENCE = 1000


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a row stands: it is row `number` out of `rows` of a split."""

    split: str
    number: int
    rows: int

    @property
    def id(self) -> str:
        """Name of the row within its language and task."""
        return f"{self.split}-{self.number}"

    @property
    def section(self) -> tuple[int, int]:
        """The article whose section the row is, and the section's number in it, from 1.

        Two or three rows that follow one another are an article, in every language the same ones.
        """
        # Two and a half rows each, as nearly as can be: none has fewer than two or more than three.
        articles = max(1, (2 * self.rows + 2) // 5)
        article = self.number * articles // self.rows
        first = -(-article * self.rows // articles)
        return article, self.number - first + 1


# The texts of a row that no other row may have, and the row.
Drawn = tuple[Sequence[str], dict[str, Any]]


def reasoning(place: Place, speakers: Sequence[Speaker], rng: np.random.Generator) -> Drawn | None:
    """Draws a row of mCSQA's fields: which aspect does a review praise, or criticise?

    The review has two clauses, and the aspects of both are among the five choices.
    `question_concept` is the aspect spoken of first, be it the answer or not, so that a prompt may
    show it.

    Args:
        place: where the row stands.
        speakers: one, of the row's language.
        rng: the only source of chance.

    Returns:
        The review's text and the row; None if not exactly one aspect of the review is the answer.
    """
    (speaker,) = speakers
    review, text, _ = speaker.speak(rng)
    signs = [np.sign(value(clause)) for clause in review.clauses]
    questions = {1: speaker.wording.praised, -1: speaker.wording.criticised}
    asked = [sign for sign in questions if signs.count(sign) == 1]
    if review.other is None or not asked:
        return None
    sign = asked[rng.integers(len(asked))]
    spoken_of = [clause.aspect for clause in review.clauses]
    answer = spoken_of[signs.index(sign)]
    rest = [aspect for aspect in range(speaker.lexicon.aspects) if aspect not in spoken_of]
    missing = len(LETTERS) - len(spoken_of)
    choices = [*spoken_of, *rng.choice(rest, size=missing, replace=False)]
    choices = [choices[i] for i in rng.permutation(len(choices))]
    return [text], {
        "id": place.id,
        "question": f"{text}{speaker.language.space}{questions[sign]}",
        "question_concept": speaker.noun(spoken_of[0]),
        "choices": {"label": LETTERS, "text": [speaker.noun(aspect) for aspect in choices]},
        "answerKey": LETTERS[choices.index(answer)],
    }


def summarization(
    place: Place, speakers: Sequence[Speaker], rng: np.random.Generator
) -> Drawn | None:
    """Draws a section of an article: reviews of one product, and what they praise and criticise.

    No two reviews of a section speak of the same aspect, so that they cannot contradict each other.
    `url` is the article's, and the same in every language that has the section.

    Args:
        place: where the row stands.
        speakers: one, of the row's language.
        rng: the only source of chance.

    Returns:
        The document and the row; None if it came to fewer than two reviews, or without opinion.
    """
    (speaker,) = speakers
    texts: list[str] = []
    leanings: dict[int, int] = {}
    for _ in range(REVIEWS):
        review, text, _ = speaker.speak(rng)
        found = {clause.aspect: int(np.sign(value(clause))) for clause in review.clauses}
        if not found.keys() & leanings.keys():
            texts.append(text)
            leanings |= found
    lines = []
    for sign, line in ((1, speaker.wording.good), (-1, speaker.wording.bad)):
        nouns = [speaker.noun(aspect) for aspect, leaning in leanings.items() if leaning == sign]
        if nouns:
            lines.append(line.format(speaker.wording.comma.join(nouns)))
    if len(texts) < 2 or not lines:
        return None
    space = speaker.language.space
    document = space.join(texts)
    article, section = place.section
    return [document], {
        "id": place.id,
        "url": f"https://reviews.example/{place.split}/{article}",
        "section_name": speaker.wording.section.format(section),
        "document": document,
        "summary": space.join(lines),
    }


def themes(place: Place, speakers: Sequence[Speaker], rng: np.random.Generator) -> Drawn:
    """Draws two or three comments, and for each aspect they speak of the clauses that do.

    The comments have three or four clauses together, so that an answer, which quotes them all,
    stays short.

    Args:
        place: where the row stands.
        speakers: one for a row in one language; of several, each says at most one comment more than
            any other. A theme is a noun in the language of the comment that brings it up.
        rng: the only source of chance.

    Returns:
        The comments and the row.
    """
    order = rng.permutation(len(speakers))
    comments: list[str] = []
    examples: dict[str, list[str]] = {}
    clauses = 0
    while clauses < 3:
        speaker = speakers[order[len(comments) % len(order)]]
        review, text, quotes = speaker.speak(rng)
        comments.append(text)
        clauses += len(quotes)
        for clause, quote in zip(review.clauses, quotes, strict=True):
            quoted = examples.setdefault(speaker.noun(clause.aspect), [])
            if quote not in quoted:
                quoted.append(quote)
    return comments, {
        "id": place.id,
        "language": speakers[0].language.code if len(speakers) == 1 else MIX,
        "comments": comments,
        "themes": [{"theme": noun, "examples": quoted} for noun, quoted in examples.items()],
    }


TASKS: dict[str, Callable[[Place, Sequence[Speaker], np.random.Generator], Drawn | None]] = {
    "reasoning": reasoning,
    "summarization": summarization,
    "themes": themes,
}


def check_task(task: str, lexicon: LexiconSizes) -> None:
    """Checks that a task can be written, before anything is.

    Raises:
        InputError: for an unknown task, or too few aspects to choose an answer from.
    """
    if task not in TASKS:
        raise InputError(f"task {task!r} has no generator; there are {sorted(TASKS)}")
    if task == "reasoning" and lexicon.aspects < len(LETTERS):
        raise InputError(
            f"lexicon.aspects={lexicon.aspects}: the task 'reasoning' offers {len(LETTERS)} "
            f"aspects to choose from; give the lexicon as many"
        )


def write_task(
    directory: pathlib.Path,
    task: str,
    rows: Mapping[str, int],
    *,
    languages: Sequence[str],
    lexicon: LexiconSizes,
    grammar: GrammarSettings,
    seed: int,
) -> None:
    """Writes `<language>/<task>/<split>.jsonl`, and for themes `mix/themes/<split>.jsonl`.

    No text occurs twice in a task, whatever the split. Neither another task nor another language
    changes a row, but for `mix`: there is one if the languages are two or more, and its comments
    are none of theirs.

    Args:
        directory: of the corpus.
        task: one of `TASKS`.
        rows: {split: rows a language}.
        languages: codes out of `LANGUAGES`.
        lexicon: how many of the grammar's words are used, from the frequent end.
        grammar: how often each construction occurs.
        seed: of everything drawn.

    Raises:
        InputError: if the words do not suffice for so many rows.
    """
    speakers = {code: [Speaker(LANGUAGES[code], lexicon, grammar)] for code in languages}
    if task == "themes" and len(languages) > 1:
        speakers[MIX] = [speaker for (speaker,) in speakers.values()]
    # One for all languages: their texts never coincide, but those of the mix do with any.
    seen: set[str] = set()
    for name, group in speakers.items():
        folder = directory / name / task
        folder.mkdir(parents=True, exist_ok=True)
        for split, count in rows.items():
            rng = np.random.default_rng([seed, *f"{task}/{name}/{split}".encode()])
            with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as lines:
                for number in range(count):
                    row = _new(task, name, Place(split, number, count), group, rng, seen)
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        counts = ", ".join(f"{split} {count}" for split, count in rows.items())
        logger.info("corpus %s, %s: %s", name, task, counts)


def _new(
    task: str,
    name: str,
    place: Place,
    speakers: Sequence[Speaker],
    rng: np.random.Generator,
    seen: set[str],
) -> dict[str, Any]:
    """Draws a row whose texts are not in `seen`, and adds them to it."""
    for _ in range(PATIENCE):
        texts, row = TASKS[task](place, speakers, rng) or ((), {})
        if texts and len(set(texts)) == len(texts) and seen.isdisjoint(texts):
            seen.update(texts)
            return row
    raise InputError(
        f"task {task!r} in {name!r}: no new row in {PATIENCE} draws for row {place.id!r}; "
        "ask for fewer rows, or allow more words or relations"
    )
