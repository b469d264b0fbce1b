"""What a review means, and what a language supplies to say it.

A review's meaning is a few integers and words of English (`Clause`, `Review`); a language adds the
words (`Lexicon`), how they are graded and negated (`Grading`), how two clauses are joined (`Link`)
and one function that builds a clause (`Language.realise`). Nothing here depends on a language.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar, get_args

import numpy as np

Degree = Literal["weak", "plain", "strong"]
Relation = Literal["single", "and", "but", "although_first", "although_last"]

DEGREES: tuple[Degree, ...] = get_args(Degree)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
CONTRASTS: tuple[Relation, ...] = ("but", "although_first", "although_last")

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Clause:
    """One statement about one part of a product.

    Attributes:
        aspect: index of the part spoken of, in `Lexicon.aspects`.
        predicate: index into the lexicon's list of this polarity.
        polarity: +1, 0 or -1: what the predicate says when it is not negated.
        negated: whether the statement denies the predicate.
        degree: how strongly it is affirmed or denied.

    Raises:
        ValueError: an unknown polarity or degree, or a neutral predicate negated or graded.
    """

    aspect: int
    predicate: int
    polarity: int
    negated: bool = False
    degree: Degree = "plain"

    def __post_init__(self):
        if self.polarity not in (-1, 0, 1):
            raise ValueError(f"polarity {self.polarity}: use -1, 0 or +1")
        if self.degree not in DEGREES:
            raise ValueError(f"degree {self.degree!r}: use one of {DEGREES}")
        if self.polarity == 0 and (self.negated or self.degree != "plain"):
            raise ValueError(f"{self}: a neutral predicate is neither negated nor graded")


@dataclasses.dataclass(frozen=True)
class Review:
    """One or two clauses and how they are joined.

    Attributes:
        main: the clause that carries the sentence; the first one under "and".
        other: the second clause, None for "single".
        relation: "and": main, then other, as equals. "but": "other, but main".
            "although_first": "although other, main". "although_last": "main, although other".

    Raises:
        ValueError: an unknown relation, or a second clause missing or too many.
    """

    main: Clause
    other: Clause | None = None
    relation: Relation = "single"

    def __post_init__(self):
        if self.relation not in RELATIONS:
            raise ValueError(f"relation {self.relation!r}: use one of {RELATIONS}")
        if (self.other is None) != (self.relation == "single"):
            raise ValueError(
                f"relation {self.relation!r} with other={self.other}: "
                "'single' has no second clause, every other relation has one"
            )

    @property
    def main_first(self) -> bool:
        """Whether the main clause comes first in the text."""
        return self.relation in ("single", "and", "although_last")

    @property
    def clauses(self) -> tuple[Clause, ...]:
        """The clauses in the order of the text."""
        if self.other is None:
            return (self.main,)
        return (self.main, self.other) if self.main_first else (self.other, self.main)


@dataclasses.dataclass(frozen=True)
class LexiconSizes:
    """How many words there are; the same in every language, so that a review fits them all."""

    aspects: int = 14
    positive: int = 40
    negative: int = 40
    neutral: int = 14

    def predicates(self, polarity: int) -> int:
        """Number of predicates of one polarity."""
        return {1: self.positive, -1: self.negative, 0: self.neutral}[polarity]


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """A language's words, from frequent to rare.

    Equal indices of two languages are not translations: a list keeps to words that its language
    uses naturally with every aspect. A language's own module says how an entry is written.
    """

    aspects: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    neutral: tuple[str, ...]

    @property
    def sizes(self) -> LexiconSizes:
        """Length of every list."""
        return LexiconSizes(
            len(self.aspects), len(self.positive), len(self.negative), len(self.neutral)
        )

    def predicate(self, clause: Clause) -> str:
        """The entry that a clause names."""
        words = {1: self.positive, -1: self.negative, 0: self.neutral}[clause.polarity]
        return words[clause.predicate]


@dataclasses.dataclass(frozen=True)
class Grading:
    """Synonymous patterns, with `{}` for the predicate, by degree.

    Attributes:
        positive: degree -> patterns that affirm a positive predicate.
        negative: the same for a negative predicate; only "weak" usually differs, as in "fairly
            good" and "a bit annoying".
        negated: degree -> patterns that deny either: "not very {}", "not {}", "not {} at all".
    """

    positive: Mapping[Degree, tuple[str, ...]]
    negative: Mapping[Degree, tuple[str, ...]]
    negated: Mapping[Degree, tuple[str, ...]]

    def complement(self, clause: Clause, predicate: str, rng: np.random.Generator) -> str:
        """The predicate with its degree and negation, in one of the synonymous patterns."""
        if clause.polarity == 0:
            return predicate
        affirmed = self.positive if clause.polarity > 0 else self.negative
        patterns = (self.negated if clause.negated else affirmed)[clause.degree]
        return pick(rng, patterns).format(predicate)


@dataclasses.dataclass(frozen=True)
class Link:
    """One way to join clauses.

    Attributes:
        text: holds `{main}` and, but for "single", `{other}`.
        main: the form that the main clause takes, a name that `Language.realise` knows.
        other: the form of the other clause.
    """

    text: str
    main: str = "main"
    other: str = "main"


@dataclasses.dataclass(frozen=True)
class Language:
    """Everything that `grammar.render` needs to know of a language.

    Attributes:
        code: ISO 639-1 code.
        name: English name.
        lexicon: the words.
        links: relation -> synonymous ways to join its clauses.
        openings: sentences without sentiment that may come first.
        realise: (clause, form, opens, rng) -> text of one clause, without capital or full stop.
            `form` is "main" or one that the language's links name; `opens` says that the clause is
            the first of the review, where it may take another determiner.
        noun: an entry of `Lexicon.aspects` -> the noun alone, as in a list.
        stop: what ends a sentence.
        space: what separates two sentences.
    """

    code: str
    name: str
    lexicon: Lexicon
    links: Mapping[Relation, tuple[Link, ...]]
    openings: tuple[str, ...]
    realise: Callable[[Clause, str, bool, np.random.Generator], str]
    noun: Callable[[str], str] = str
    stop: str = "."
    space: str = " "


def words(text: str) -> tuple[str, ...]:
    """A list written as one text with commas, which is easier to proofread than a word a line."""
    return tuple(word.strip() for word in text.split(","))


def pick(rng: np.random.Generator, options: Sequence[Item]) -> Item:
    """One of the options, each as likely as any other."""
    return options[rng.integers(len(options))]
