"""Spanish. Aspects are masculine and singular, and every predicate takes "ser"."""

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
        micrófono, monitor, precio, sonido, envío, estuche, teclado, zoom, diseño, embalaje,
        software, cargador, manual, servicio
    """),
    positive=words("""
        bueno, agradable, atractivo, genial, decente, satisfactorio, recomendable, impresionante,
        convincente, razonable, sólido, competitivo, acertado, apetecible, encantador, fascinante,
        prometedor, admirable, tentador, ventajoso, emocionante, respetable, grato, ejemplar,
        gratificante, tranquilizador, deseable, alentador, placentero, seductor, beneficioso,
        envidiable, provechoso, cautivador, reconfortante, loable, estimulante, esperanzador,
        elogiable, meritorio
    """),
    negative=words("""
        malo, decepcionante, molesto, desagradable, frustrante, mediocre, ridículo, deficiente,
        irritante, lamentable, problemático, cuestionable, dudoso, preocupante, insatisfactorio,
        fastidioso, penoso, enervante, vergonzoso, absurdo, desastroso, desesperante, inadecuado,
        indignante, patético, desafortunado, deprimente, inquietante, sospechoso, discutible,
        deplorable, desalentador, exasperante, desacertado, lastimoso, enojoso, bochornoso,
        desolador, risible, calamitoso
    """),
    neutral=words("""
        normal, estándar, común, como se esperaba, corriente, típico, habitual, convencional,
        como los demás, igual que antes, ni bueno ni malo, de nivel medio,
        acorde con la descripción, como en el anuncio
    """),
)

_STRONG = ("muy {}", "realmente {}", "sumamente {}", "extremadamente {}")
GRADING = Grading(
    positive={
        "weak": ("relativamente {}", "medianamente {}", "más o menos {}"),
        "plain": ("{}",),
        "strong": _STRONG,
    },
    negative={
        "weak": ("un poco {}", "un tanto {}", "ligeramente {}"),
        "plain": ("{}",),
        "strong": _STRONG,
    },
    negated={
        "weak": ("muy {}", "demasiado {}", "especialmente {}", "particularmente {}"),
        "plain": ("{}",),
        "strong": ("nada {}", "para nada {}", "en absoluto {}", "{} en absoluto"),
    },
)

LINKS = {
    "single": (Link("{main}"),),
    "and": (Link("{main} y {other}"), Link("{main}, y {other}"), Link("{main}; {other}")),
    "but": (
        Link("{other}, pero {main}"),
        Link("{other}. Sin embargo, {main}"),
        Link("{other}. No obstante, {main}"),
    ),
    "although_first": (
        Link("aunque {other}, {main}"),
        Link("a pesar de que {other}, {main}"),
        Link("si bien {other}, {main}"),
    ),
    "although_last": (
        Link("{main}, aunque {other}"),
        Link("{main}, a pesar de que {other}"),
        Link("{main}, si bien {other}"),
    ),
}

OPENINGS = (
    "Lo compré el mes pasado.",
    "Lo uso desde hace dos semanas.",
    "Llegó el martes.",
    "Lo pedimos para la oficina.",
    "Ya es el segundo que tengo.",
    "Es para mi hermano.",
    "Esta es mi opinión.",
    "Lo usamos todos los días.",
)


def realise(clause: Clause, form: str, opens: bool, rng: np.random.Generator) -> str:
    """Subject, "es" or "no es" and the predicate; there is one form."""
    determiner = pick(rng, ("el", "el", "este", "su")) if opens else "el"
    predicate = LEXICON.predicate(clause)
    # "ni ... ni ..." after the verb takes "no" as a negation does.
    copula = "no es" if clause.negated or predicate.startswith("ni ") else "es"
    complement = GRADING.complement(clause, predicate, rng)
    return f"{determiner} {LEXICON.aspects[clause.aspect]} {copula} {complement}"


LANGUAGE = Language("es", "Spanish", LEXICON, LINKS, OPENINGS, realise)
