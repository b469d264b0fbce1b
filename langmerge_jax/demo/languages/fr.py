"""French. Aspects are masculine and singular, so that one form of an adjective fits them all."""

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
        micro, écran, prix, rendu sonore, envoi, boîtier, clavier, appareil photo, design,
        emballage, logiciel, chargeur, manuel, service
    """),
    positive=words("""
        bon, agréable, sympa, satisfaisant, convaincant, réussi, attrayant, plaisant,
        impressionnant, appréciable, chouette, attractif, séduisant, rassurant, bluffant,
        avantageux, remarquable, recommandable, charmant, excitant, compétitif, prometteur, honnête,
        tentant, encourageant, admirable, épatant, concluant, louable, exemplaire, enthousiasmant,
        réjouissant, respectable, fascinant, alléchant, engageant, enviable, désirable, gratifiant,
        méritoire
    """),
    negative=words("""
        mauvais, décevant, nul, désagréable, médiocre, agaçant, pénible, frustrant, gênant,
        énervant, raté, ridicule, insatisfaisant, embêtant, irritant, douteux, choquant, minable,
        regrettable, problématique, inquiétant, discutable, déplaisant, lamentable, pitoyable,
        rebutant, honteux, fâcheux, exaspérant, rageant, absurde, navrant, déplorable, décourageant,
        contrariant, suspect, affligeant, consternant, risible, piteux
    """),
    neutral=words("""
        dans la moyenne, normal, standard, comme prévu, ordinaire, classique, habituel,
        conforme à la description, courant, typique, inchangé, ni bon ni mauvais,
        semblable aux autres, conventionnel
    """),
)

_STRONG = ("très {}", "vraiment {}", "extrêmement {}", "particulièrement {}")
GRADING = Grading(
    positive={
        "weak": ("assez {}", "plutôt {}", "relativement {}"),
        "plain": ("{}",),
        "strong": _STRONG,
    },
    negative={
        "weak": ("un peu {}", "légèrement {}", "quelque peu {}"),
        "plain": ("{}",),
        "strong": _STRONG,
    },
    negated={
        "weak": ("pas très {}", "pas vraiment {}", "pas tellement {}", "pas particulièrement {}"),
        "plain": ("pas {}",),
        "strong": ("pas du tout {}", "absolument pas {}", "en rien {}", "nullement {}"),
    },
)

LINKS = {
    "single": (Link("{main}"),),
    "and": (Link("{main} et {other}"), Link("{main}, et {other}"), Link("{main} ; {other}")),
    "but": (
        Link("{other}, mais {main}"),
        Link("{other}. Cependant, {main}"),
        Link("{other}. Toutefois, {main}"),
    ),
    "although_first": (
        Link("bien que {other}, {main}", other="subjunctive"),
        Link("quoique {other}, {main}", other="subjunctive"),
        Link("même si {other}, {main}"),
    ),
    "although_last": (
        Link("{main}, bien que {other}", other="subjunctive"),
        Link("{main}, quoique {other}", other="subjunctive"),
        Link("{main}, même si {other}"),
    ),
}

OPENINGS = (
    "Je l'ai acheté le mois dernier.",
    "Je l'utilise depuis deux semaines.",
    "Je l'ai reçu mardi.",
    "Nous l'avons commandé pour le bureau.",
    "C'est déjà mon deuxième.",
    "C'est pour mon frère.",
    "Voici mon avis.",
    "Nous nous en servons tous les jours.",
)

_VOWELS = "aeiouéèê"
_COPULAS = {
    # (form, negated)
    ("main", False): "est",
    ("main", True): "n'est",
    ("subjunctive", False): "soit",
    ("subjunctive", True): "ne soit",
}


def realise(clause: Clause, form: str, opens: bool, rng: np.random.Generator) -> str:
    """A clause in the indicative ("main") or, after "bien que", in the subjunctive."""
    noun = LEXICON.aspects[clause.aspect]
    predicate = LEXICON.predicate(clause)
    article, this = ("l'", "cet ") if noun[0] in _VOWELS else ("le ", "ce ")
    determiner = pick(rng, (article, article, this, "son ")) if opens else article
    # "ni ... ni ..." takes "ne" as a negation does.
    copula = _COPULAS[form, clause.negated or predicate.startswith("ni ")]
    return f"{determiner}{noun} {copula} {GRADING.complement(clause, predicate, rng)}"


LANGUAGE = Language("fr", "French", LEXICON, LINKS, OPENINGS, realise)
