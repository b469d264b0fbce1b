"""Who says the rows of the demo's other tasks: reviews, and what the tasks add to them."""

import dataclasses

import numpy as np

from langmerge_jax.demo.grammar import (
    GrammarSettings,
    Language,
    LexiconSizes,
    Review,
    render_clauses,
    sample,
)


@dataclasses.dataclass(frozen=True)
class Wording:
    """What a language says in these tasks beside its reviews.

    Attributes:
        praised: the question for the aspect that is praised.
        criticised: the question for the one that is criticised.
        good: line of a summary, with `{}` for the aspects that are praised.
        bad: the same for those that are criticised.
        section: name of a section, with `{}` for its number in the article.
        comma: what separates the aspects of a line.
    """

    praised: str
    criticised: str
    good: str
    bad: str
    section: str
    comma: str = ", "


# Aspects stand in lists, as nouns without article, where no language inflects them.
WORDINGS = {
    "en": Wording(
        "What is praised?", "What is criticised?", "Good: {}.", "Bad: {}.", "Reviews, part {}"
    ),
    "de": Wording(
        "Was wird gelobt?", "Was wird kritisiert?", "Lob: {}.", "Tadel: {}.", "Bewertungen, Teil {}"
    ),
    "fr": Wording(
        "Qu'est-ce qui est apprécié ?",
        "Qu'est-ce qui est critiqué ?",
        "Points forts : {}.",
        "Points faibles : {}.",
        "Avis, partie {}",
    ),
    "ja": Wording(
        "褒められているのは何ですか。",
        "批判されているのは何ですか。",
        "良い点：{}。",
        "悪い点：{}。",
        "レビュー、その{}",
        "、",
    ),
    "zh": Wording(
        "受到称赞的是什么？",
        "受到批评的是什么？",
        "优点：{}。",
        "缺点：{}。",
        "评价，第{}部分",
        "、",
    ),
    "es": Wording(
        "¿Qué se elogia?", "¿Qué se critica?", "A favor: {}.", "En contra: {}.", "Reseñas, parte {}"
    ),
}


@dataclasses.dataclass(frozen=True)
class Speaker:
    """Somebody who reviews products in one language, with the words and habits of the corpus."""

    language: Language
    lexicon: LexiconSizes
    grammar: GrammarSettings

    @property
    def wording(self) -> Wording:
        """What the language says in these tasks beside its reviews."""
        return WORDINGS[self.language.code]

    def noun(self, aspect: int) -> str:
        """The noun of an aspect."""
        return self.language.noun(self.language.lexicon.aspects[aspect])

    def speak(self, rng: np.random.Generator) -> tuple[Review, str, tuple[str, ...]]:
        """Draws a review; returns its meaning, its text and the text's clauses, verbatim."""
        review = sample(rng, self.lexicon, self.grammar)
        return review, *render_clauses(review, self.language, rng, self.grammar)
