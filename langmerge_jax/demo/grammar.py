"""A grammar of product reviews: meanings with a known label, said in any of `LANGUAGES`.

`sample` draws a meaning, `label` and `impression` read its sentiment off the meaning alone, and
`render` says it in one language. Sentiment hangs on negation, degree and on how two clauses stand
to each other, so that the words of a text alone do not give it away.

The two readings differ where a review both praises and blames. `impression` is how its writer feels
on the whole, and what a base model that has read reviews makes of it; `label` follows a guideline
that somebody set for the task, the same in every language, and that only fine-tuning can teach.
"""

import dataclasses

import numpy as np

from langmerge_jax.demo.languages import LANGUAGES
from langmerge_jax.demo.languages.base import (
    CONTRASTS,
    DEGREES,
    RELATIONS,
    Clause,
    Language,
    LexiconSizes,
    Review,
    pick,
)
from langmerge_jax.errors import InputError

__all__ = [
    "CONTRASTS",
    "DEGREES",
    "LABELS",
    "LANGUAGES",
    "RELATIONS",
    "Clause",
    "GrammarSettings",
    "Language",
    "LexiconSizes",
    "Review",
    "impression",
    "label",
    "render",
    "render_clauses",
    "sample",
    "value",
]

LABELS = ("negative", "neutral", "positive")
STRENGTH = {"weak": 1, "plain": 2, "strong": 3}


@dataclasses.dataclass(frozen=True)
class GrammarSettings:
    """How often each thing happens. By default a quarter of the reviews is neutral.

    Few texts are one neutral clause, so a corpus without repetition has fewer: 20 % of 10,000.

    Attributes:
        relations: share of each of `RELATIONS`, in that order; they add up to 1.
        neutral: probability that a clause has a neutral predicate.
        opposed: under "and", probability that two clauses with an opinion disagree.
        negation: probability that a clause with an opinion says it by denying the opposite.
        weak: probability that a clause with an opinion is weak.
        strong: probability that it is strong.
        opening: probability that a sentence without sentiment comes first.
        zipf: the predicate at place k of its list is drawn in proportion to k ** -zipf; 0 draws all
            alike.

    Raises:
        InputError: a probability outside [0, 1], or shares that do not add up to 1.
    """

    relations: tuple[float, ...] = (0.38, 0.32, 0.1, 0.1, 0.1)
    neutral: float = 0.4
    opposed: float = 0.75
    negation: float = 0.3
    weak: float = 0.2
    strong: float = 0.25
    opening: float = 0.5
    zipf: float = 1.0

    def __post_init__(self):
        for name in ("neutral", "opposed", "negation", "weak", "strong", "opening"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: a probability is from 0 to 1")
        if self.weak + self.strong > 1:
            raise InputError(f"weak={self.weak} and strong={self.strong} add up to more than 1")
        if len(self.relations) != len(RELATIONS) or min(self.relations) < 0:
            raise InputError(f"relations={self.relations}: give a share for each of {RELATIONS}")
        if abs(sum(self.relations) - 1) > 1e-6:
            raise InputError(f"relations={self.relations} add up to {sum(self.relations)}, not 1")


DEFAULT_SETTINGS = GrammarSettings()
DEFAULT_SIZES = LexiconSizes()


def value(clause: Clause) -> int:
    """What a clause adds to the score: polarity, turned by negation, times strength (1 to 3)."""
    return clause.polarity * (-1 if clause.negated else 1) * STRENGTH[clause.degree]


def impression(review: Review) -> str:
    """The sentiment a review leaves on the whole, from its meaning alone.

    The values of the clauses are added up, the main clause's twice if the relation is a contrast;
    the impression is the sign of the sum. "Not at all bad" is worth +3, "not very good" -1.

    Args:
        review: the meaning.

    Returns:
        "positive", "neutral" or "negative".
    """
    score = value(review.main) * (2 if review.relation in CONTRASTS else 1)
    if review.other is not None:
        score += value(review.other)
    return LABELS[np.sign(score) + 1]


def label(review: Review) -> str:
    """The sentiment of a review by the task's guideline: one that praises and blames is neutral.

    Every other review has the label of its `impression`.

    Args:
        review: the meaning.

    Returns:
        "positive", "neutral" or "negative".
    """
    signs = {np.sign(value(clause)) for clause in review.clauses}
    return "neutral" if {-1, 1} <= signs else impression(review)


def sample(
    rng: np.random.Generator,
    sizes: LexiconSizes = DEFAULT_SIZES,
    settings: GrammarSettings = DEFAULT_SETTINGS,
) -> Review:
    """Draw the meaning of a review.

    Two clauses never share their aspect or their predicate, and the clauses of a contrast never
    lean the same way, as "good, but nice" would.

    Args:
        rng: the only source of chance.
        sizes: how many words the lexicons have.
        settings: how often each thing happens.

    Returns:
        A review that every language with these sizes can say.
    """
    relation = RELATIONS[rng.choice(len(RELATIONS), p=settings.relations)]
    leaning = _leaning(rng, settings.neutral, positive=0.5)
    main = _clause(rng, sizes, settings, leaning)
    if relation == "single":
        return Review(main)
    if relation == "and":
        agree = settings.opposed if leaning < 0 else 1 - settings.opposed
        leaning = _leaning(rng, settings.neutral, positive=agree if leaning else 0.5)
    elif leaning == 0:
        leaning = _leaning(rng, neutral=0.0, positive=0.5)
    else:
        leaning = _leaning(rng, settings.neutral, positive=float(leaning < 0))
    return Review(main, _clause(rng, sizes, settings, leaning, beside=main), relation)


def _leaning(rng: np.random.Generator, neutral: float, positive: float) -> int:
    """The sign of a clause's value; `positive` is the probability of + where it has an opinion."""
    if rng.random() < neutral:
        return 0
    return 1 if rng.random() < positive else -1


def _clause(
    rng: np.random.Generator,
    sizes: LexiconSizes,
    settings: GrammarSettings,
    leaning: int,
    beside: Clause | None = None,
) -> Clause:
    """A clause whose value has the sign `leaning`, with other words than the clause beside it."""
    negated, degree = False, "plain"
    if leaning:
        negated = bool(rng.random() < settings.negation)
        plain = 1 - settings.weak - settings.strong
        degree = DEGREES[rng.choice(len(DEGREES), p=(settings.weak, plain, settings.strong))]
    polarity = -leaning if negated else leaning
    aspects = np.ones(sizes.aspects)
    predicates = np.arange(1, sizes.predicates(polarity) + 1) ** -float(settings.zipf)
    if beside is not None:
        aspects[beside.aspect] = 0
        if beside.polarity == polarity:
            predicates[beside.predicate] = 0
    return Clause(
        aspect=int(rng.choice(sizes.aspects, p=aspects / aspects.sum())),
        predicate=int(rng.choice(len(predicates), p=predicates / predicates.sum())),
        polarity=polarity,
        negated=negated,
        degree=degree,
    )


def render(
    review: Review,
    language: Language,
    rng: np.random.Generator,
    settings: GrammarSettings = DEFAULT_SETTINGS,
) -> str:
    """Say a review in a language.

    Args:
        review: the meaning, with indices that the language's lexicon has.
        language: one of `LANGUAGES.values()`, or another.
        rng: chooses among synonymous wordings; the same state gives the same text.
        settings: only `opening` is used.

    Returns:
        One line of text with its capitals and punctuation.
    """
    return render_clauses(review, language, rng, settings)[0]


def render_clauses(
    review: Review,
    language: Language,
    rng: np.random.Generator,
    settings: GrammarSettings = DEFAULT_SETTINGS,
) -> tuple[str, tuple[str, ...]]:
    """Say a review as `render` does, and quote its clauses.

    Returns:
        The text, and for each of `review.clauses` the part of the text that says it, verbatim.
    """
    opening = pick(rng, language.openings) if rng.random() < settings.opening else ""
    link = pick(rng, language.links[review.relation])
    parts = {"main": language.realise(review.main, link.main, review.main_first, rng)}
    if review.other is not None:
        parts["other"] = language.realise(review.other, link.other, not review.main_first, rng)
    text = link.text.format(**parts)
    sentence = text[0].upper() + text[1:] + language.stop
    said = [parts["main"]] if review.other is None else [parts["main"], parts["other"]]
    # The clause that opens the sentence has got a capital.
    quotes = [part if part in sentence else part[0].upper() + part[1:] for part in said]
    text = f"{opening}{language.space}{sentence}" if opening else sentence
    return text, tuple(quotes if review.main_first else quotes[::-1])
