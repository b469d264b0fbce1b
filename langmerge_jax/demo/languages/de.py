"""German. Predicative adjectives do not inflect; the place of the verb is what varies.

An aspect is written with its article, which gives its gender.
"""

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
        der Akku, der Bildschirm, der Preis, der Klang, die Lieferung, das Gehäuse, die Tastatur,
        die Kamera, das Design, die Verpackung, die Software, das Ladegerät, die Anleitung,
        der Service
    """),
    positive=words("""
        gut, schön, toll, angenehm, überzeugend, ansprechend, attraktiv, nett, gelungen, solide,
        ordentlich, vernünftig, beeindruckend, erfreulich, sinnvoll, brauchbar, sympathisch,
        empfehlenswert, durchdacht, zufriedenstellend, stimmig, lobenswert, vorteilhaft, anständig,
        verlockend, vorbildlich, vielversprechend, begeisternd, einladend, kundenfreundlich,
        reizvoll, beruhigend, faszinierend, lohnend, wohltuend, bestechend, gefällig,
        bewundernswert, imponierend, löblich
    """),
    negative=words("""
        schlecht, enttäuschend, ärgerlich, nervig, schwach, mies, unangenehm, störend, frustrierend,
        blöd, lästig, fragwürdig, ernüchternd, lächerlich, peinlich, ungünstig, problematisch,
        unbefriedigend, unzulänglich, mangelhaft, bedenklich, unerfreulich, abschreckend, unschön,
        zweifelhaft, unsinnig, bedauerlich, deprimierend, beschämend, erbärmlich, absurd, dubios,
        lausig, kläglich, schäbig, armselig, misslungen, blamabel, lachhaft, betrüblich
    """),
    neutral=words("""
        durchschnittlich, normal, wie erwartet, üblich, Standard, gewöhnlich, wie beschrieben,
        typisch, unverändert, weder gut noch schlecht, herkömmlich, konventionell,
        wie bei anderen Geräten, alltäglich
    """),
)

_STRONG = ("sehr {}", "wirklich {}", "äußerst {}", "extrem {}")
GRADING = Grading(
    positive={
        "weak": ("recht {}", "einigermaßen {}", "halbwegs {}"),
        "plain": ("{}",),
        "strong": _STRONG,
    },
    negative={
        "weak": ("etwas {}", "ein wenig {}", "ein bisschen {}"),
        "plain": ("{}",),
        "strong": _STRONG,
    },
    negated={
        "weak": ("nicht besonders {}", "nicht sehr {}", "nicht allzu {}", "nicht wirklich {}"),
        "plain": ("nicht {}",),
        "strong": ("überhaupt nicht {}", "gar nicht {}", "kein bisschen {}", "alles andere als {}"),
    },
)

LINKS = {
    "single": (Link("{main}"),),
    "and": (Link("{main} und {other}"), Link("{main}, und {other}"), Link("{main}; {other}")),
    "but": (
        Link("{other}, aber {main}"),
        Link("{other}, doch {main}"),
        Link("{other}. Allerdings {main}", main="verb_first"),
        Link("{other}, jedoch {main}", main="verb_first"),
    ),
    "although_first": (
        Link("obwohl {other}, {main}", main="verb_first", other="verb_last"),
        Link("auch wenn {other}, {main}", main="verb_first", other="verb_last"),
        Link("obgleich {other}, {main}", main="verb_first", other="verb_last"),
    ),
    "although_last": (
        Link("{main}, obwohl {other}", other="verb_last"),
        Link("{main}, auch wenn {other}", other="verb_last"),
        Link("{main}, obgleich {other}", other="verb_last"),
    ),
}

OPENINGS = (
    "Ich habe es letzten Monat gekauft.",
    "Ich benutze es seit zwei Wochen.",
    "Es kam am Dienstag an.",
    "Wir haben es für das Büro bestellt.",
    "Das ist schon mein zweites Gerät.",
    "Es ist für meinen Bruder.",
    "Hier ist meine Bewertung.",
    "Wir nutzen es jeden Tag.",
)

_DEMONSTRATIVES = {"der": "dieser", "die": "diese", "das": "dieses"}


def realise(clause: Clause, form: str, opens: bool, rng: np.random.Generator) -> str:
    """A clause with its verb second ("main"), last (after "obwohl") or first (after a clause)."""
    article, noun = LEXICON.aspects[clause.aspect].split()
    if opens:
        article = pick(rng, (article, _DEMONSTRATIVES[article]))
    subject = f"{article} {noun}"
    complement = GRADING.complement(clause, LEXICON.predicate(clause), rng)
    orders = {
        "main": f"{subject} ist {complement}",
        "verb_last": f"{subject} {complement} ist",
        "verb_first": f"ist {subject} {complement}",
    }
    return orders[form]


def noun(aspect: str) -> str:
    """An aspect without its article."""
    return aspect.split()[1]


LANGUAGE = Language("de", "German", LEXICON, LINKS, OPENINGS, realise, noun)
