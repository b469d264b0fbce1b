"""English. Aspects are singular; predicates can all be graded ("fairly", "very") and denied."""

import numpy as np

from langmerge_jax.demo.languages.base import (
    Clause,
    Grading,
    Language,
    Lexicon,
    Link,
    pick,
    words,
)

LEXICON = Lexicon(
    aspects=words("""
        battery, screen, price, sound, delivery, case, keyboard, camera, design, packaging,
        software, charger, manual, service
    """),
    positive=words("""
        good, nice, impressive, solid, pleasant, attractive, convincing, appealing, satisfying,
        decent, sensible, neat, pleasing, likeable, lovely, promising, exciting, competitive,
        inviting, agreeable, worthwhile, reassuring, encouraging, admirable, delightful,
        respectable, compelling, refreshing, commendable, desirable, tempting, enticing, rewarding,
        welcome, praiseworthy, customer-friendly, gratifying, enviable, heartening, laudable
    """),
    negative=words("""
        bad, disappointing, poor, annoying, frustrating, unpleasant, irritating, awkward,
        questionable, ridiculous, unconvincing, underwhelming, problematic, dodgy, off-putting,
        unsatisfying, embarrassing, lousy, worrying, dubious, upsetting, nasty, unattractive,
        infuriating, regrettable, discouraging, bothersome, troubling, absurd, depressing, painful,
        tiresome, pathetic, shameful, laughable, dismal, exasperating, deplorable, vexing,
        lamentable
    """),
    neutral=words("""
        average, normal, standard, as expected, ordinary, typical, as described, conventional,
        neither good nor bad, unchanged, customary, like any other, commonplace,
        somewhere in the middle
    """),
)

_STRONG = ("very {}", "really {}", "extremely {}", "incredibly {}")
GRADING = Grading(
    positive={
        "weak": ("fairly {}", "reasonably {}", "moderately {}"),
        "plain": ("{}",),
        "strong": _STRONG,
    },
    negative={
        "weak": ("a bit {}", "slightly {}", "somewhat {}"),
        "plain": ("{}",),
        "strong": _STRONG,
    },
    negated={
        "weak": ("not very {}", "not particularly {}", "not especially {}", "not all that {}"),
        "plain": ("not {}",),
        "strong": ("not at all {}", "not {} at all", "not in the least {}", "anything but {}"),
    },
)

LINKS = {
    "single": (Link("{main}"),),
    "and": (Link("{main} and {other}"), Link("{main}, and {other}"), Link("{main}; {other}")),
    "but": (
        Link("{other}, but {main}"),
        Link("{other}, yet {main}"),
        Link("{other}. However, {main}"),
    ),
    "although_first": (
        Link("although {other}, {main}"),
        Link("even though {other}, {main}"),
        Link("while {other}, {main}"),
    ),
    "although_last": (
        Link("{main}, although {other}"),
        Link("{main}, even though {other}"),
        Link("{main}, though {other}"),
    ),
}

OPENINGS = (
    "I bought it last month.",
    "I have used it for two weeks.",
    "It arrived on Tuesday.",
    "We ordered it for the office.",
    "This is my second one.",
    "I got it for my brother.",
    "Here is my review.",
    "We use it every day.",
)


def realise(clause: Clause, form: str, opens: bool, rng: np.random.Generator) -> str:
    """Subject, "is" and the predicate; there is one form."""
    determiner = pick(rng, ("the", "the", "this", "its")) if opens else "the"
    complement = GRADING.complement(clause, LEXICON.predicate(clause), rng)
    text = f"{determiner} {LEXICON.aspects[clause.aspect]} is {complement}"
    return text.replace(" is not ", pick(rng, (" is not ", " isn't ")))


LANGUAGE = Language("en", "English", LEXICON, LINKS, OPENINGS, realise)
