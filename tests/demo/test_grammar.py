"""The demo's grammar: the label rule, and sentences that a speaker would accept."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from langmerge_jax.demo.grammar import (
    CONTRASTS,
    DEGREES,
    LABELS,
    LANGUAGES,
    RELATIONS,
    Clause,
    GrammarSettings,
    LexiconSizes,
    Review,
    impression,
    label,
    render,
    sample,
    value,
)
from langmerge_jax.errors import InputError

OPINIONS = [
    Clause(0, 3, polarity, negated, degree)
    for polarity, negated, degree in itertools.product((1, -1), (False, True), DEGREES)
]
CLAUSES = [*OPINIONS, Clause(0, 3, 0)]


# By hand, a meaning and one of its texts: the impression worked out from the sentence (weak 1,
# plain 2, strong 3, the main clause of a contrast twice), the relation, the main clause and the
# other one, each as aspect, predicate, then "weak", "strong" or "not" if so.
GOLDEN = {
    "en": """
        positive | single | battery, good
        The battery is good.
        negative | single | battery, good, weak, not
        The battery is not very good.
        positive | single | screen, bad, strong, not
        The screen isn't bad at all.
        neutral | single | price, as expected
        This price is as expected.
        positive | and | sound, nice, strong | case, poor
        The sound is very nice and the case is poor.
        neutral | and | delivery, annoying, weak | case, solid, weak
        Its delivery is a bit annoying, and the case is fairly solid.
        negative | but | manual, bad | camera, impressive, strong
        The camera is extremely impressive, but the manual is bad.
        neutral | although_first | service, good, weak | manual, decent, not
        Although the manual is not decent, the service is reasonably good.
        positive | although_last | keyboard, awkward, weak | design, bad, strong, not
        The keyboard is slightly awkward, though the design is anything but bad.
        positive | but | charger, neither good nor bad | design, good
        The design is good. However, the charger is neither good nor bad.
    """,
    "de": """
        negative | although_first | der Bildschirm, schlecht | der Akku, gut, weak, not
        Obwohl dieser Akku nicht sehr gut ist, ist der Bildschirm schlecht.
        positive | although_last | die Lieferung, blöd, strong, not | das Gehäuse, wie erwartet
        Die Lieferung ist überhaupt nicht blöd, auch wenn das Gehäuse wie erwartet ist.
        negative | but | das Design, toll, strong, not | die Kamera, nervig, weak
        Diese Kamera ist ein wenig nervig. Allerdings ist das Design alles andere als toll.
        neutral | and | der Preis, weder gut noch schlecht | die Tastatur, normal
        Der Preis ist weder gut noch schlecht und die Tastatur ist normal.
    """,
    "fr": """
        positive | although_first | rendu sonore, bon, strong | écran, décevant, weak, not
        Bien que cet écran ne soit pas très décevant, le rendu sonore est vraiment bon.
        positive | although_last | prix, agaçant, weak | emballage, sympa, strong
        Ce prix est un peu agaçant, quoique l'emballage soit très sympa.
        positive | but | appareil photo, nul, strong, not | envoi, ni bon ni mauvais
        L'envoi n'est ni bon ni mauvais, mais l'appareil photo n'est pas du tout nul.
        negative | although_first | manuel, mauvais | logiciel, ni bon ni mauvais
        Quoique son logiciel ne soit ni bon ni mauvais, le manuel est mauvais.
    """,
    "ja": """
        negative | but | 画面, 魅力的な, strong, not | バッテリー, 良い, weak, not
        バッテリーはあまり良くないですが、画面は全く魅力的ではありません。
        negative | although_first | 画面, 良い, not | 価格, 魅力的な
        価格は魅力的なのに、画面は良くありません。
        positive | although_first | 音質, 優れている, strong | 配送, 普通な
        この配送は普通であるものの、音質はとても優れています。
        negative | and | カメラ, 優れている, not | ケース, 満足できる, weak, not
        カメラは優れておらず、ケースはそれほど満足できません。
        positive | and | カメラ, 満足できる | ケース, 良くも悪くもない
        カメラは満足でき、ケースは良くも悪くもないです。
        positive | although_last | 充電器, ひどい, strong, not | 説明書, 不快な, weak
        充電器は全くひどくないです。もっとも、説明書は少し不快ですが。
        neutral | although_last | ソフト, 理想的な, weak | 梱包, 不満な
        ソフトは割と理想的です。梱包は不満なのに。
    """,
    "zh": """
        positive | although_first | 屏幕, 差, strong, not | 电池, 好, weak, not
        虽然电池不太好，但是屏幕一点也不差。
        negative | although_last | 价格, 糟糕 | 服务, 令人满意, strong
        价格很糟糕，尽管服务非常令人满意。
        positive | but | 音质, 不好不坏 | 设计, 给力, weak
        它的设计还算给力，不过音质不好不坏。
        negative | and | 键盘, 靠谱, not | 包装, 令人失望
        这款产品的键盘不靠谱，包装很令人失望。
    """,
    "es": """
        positive | although_first | sonido, bueno, weak, not | precio, malo, strong, not
        Aunque este precio no es nada malo, el sonido no es muy bueno.
        negative | and | teclado, ni bueno ni malo | envío, molesto, weak
        El teclado no es ni bueno ni malo y el envío es un poco molesto.
        positive | although_last | estuche, atractivo, strong | manual, bueno, strong, not
        Su estuche es realmente atractivo, a pesar de que el manual no es bueno en absoluto.
    """,
}


def read_clause(code, text):
    """A clause as `GOLDEN` writes it; its polarity is that of the list the predicate is in."""
    lexicon = LANGUAGES[code].lexicon
    lists = {1: lexicon.positive, -1: lexicon.negative, 0: lexicon.neutral}
    aspect, predicate, *marks = text.split(", ")
    polarity = next(sign for sign, entries in lists.items() if predicate in entries)
    degree = next((mark for mark in marks if mark in DEGREES), "plain")
    return Clause(
        lexicon.aspects.index(aspect),
        lists[polarity].index(predicate),
        polarity,
        "not" in marks,
        degree,
    )


def golden_cases():
    for code, table in GOLDEN.items():
        lines = [line.strip() for line in table.strip().splitlines()]
        for meaning, text in zip(lines[::2], lines[1::2], strict=True):
            expected, relation, *parts = meaning.split(" | ")
            main, other = ([read_clause(code, part) for part in parts] + [None])[:2]
            yield code, text, Review(main, other, relation), expected


class Script:
    """Stands for a generator and replays given choices, then first options, noting their number."""

    def __init__(self, choices):
        self.choices, self.sizes = list(choices), []

    def random(self):
        return 1.0  # no opening

    def integers(self, size):
        self.sizes.append(size)
        place = len(self.sizes) - 1
        return self.choices[place] if place < len(self.choices) else 0


def wordings(review, language):
    """Every text that `render` can give for a review, without openings."""
    texts, pending = set(), [()]
    while pending:
        script = Script(choices := pending.pop())
        texts.add(render(review, language, script))
        for place in range(len(choices), len(script.sizes)):
            stem = choices + (0,) * (place - len(choices))
            pending += [(*stem, option) for option in range(1, script.sizes[place])]
    return texts


def samples(code, count=2000):
    """Random reviews in which rare words are as likely as frequent ones, and their texts."""
    rng, settings = np.random.default_rng(7), GrammarSettings(zipf=0.0)
    reviews = [sample(rng, settings=settings) for _ in range(count)]
    return [(review, render(review, LANGUAGES[code], rng, settings)) for review in reviews]


# Impression and label


@pytest.mark.parametrize(("code", "text", "review", "expected"), list(golden_cases()))
def test_hand_written_sentences_are_generated_with_their_impression(code, text, review, expected):
    assert impression(review) == expected
    assert text in wordings(review, LANGUAGES[code])


@pytest.mark.parametrize("read", [impression, label])
def test_swapping_polarity_swaps_the_sentiment(read):
    for main, other, relation in itertools.product(CLAUSES, CLAUSES, RELATIONS[1:]):
        review = Review(main, other, relation)
        mirrored = Review(
            *(dataclasses.replace(part, polarity=-part.polarity) for part in (main, other)),
            relation,
        )
        assert LABELS.index(read(review)) + LABELS.index(read(mirrored)) == 2


def test_praise_and_blame_together_are_neutral_by_the_guideline():
    good, very_bad = Clause(0, 3, 1), Clause(1, 3, -1, degree="strong")
    not_bad, so_so = Clause(1, 4, -1, negated=True), Clause(1, 3, 0)
    for relation in RELATIONS[1:]:
        mixed = Review(good, very_bad, relation)
        assert label(mixed) == "neutral"
        assert impression(mixed) == ("negative" if relation == "and" else "positive")
        for other in (so_so, not_bad):
            assert label(Review(good, other, relation)) == "positive"
    assert label(Review(very_bad)) == "negative"
    assert label(Review(so_so)) == "neutral"


def test_meanings_without_sense_are_refused():
    with pytest.raises(ValueError, match="neither negated nor graded"):
        Clause(0, 0, 0, negated=True)
    with pytest.raises(ValueError, match="use one of"):
        Clause(0, 0, 1, degree="very")
    with pytest.raises(ValueError, match="polarity 2"):
        Clause(0, 0, 2)
    with pytest.raises(ValueError, match="every other relation has one"):
        Review(OPINIONS[0], None, "but")
    with pytest.raises(ValueError, match="use one of"):
        Review(OPINIONS[0], OPINIONS[1], "because")


# Sampling


def test_samples_never_repeat_a_word_nor_contrast_what_agrees():
    rng = np.random.default_rng(0)
    sizes = LexiconSizes(aspects=2, positive=2, negative=2, neutral=2)
    for _ in range(2000):
        review = sample(rng, sizes)
        if review.other is None:
            continue
        first, second = review.clauses
        assert first.aspect != second.aspect
        assert (first.polarity, first.predicate) != (second.polarity, second.predicate)
        if review.relation in CONTRASTS:
            assert np.sign(value(first)) != np.sign(value(second))


def test_no_label_is_rare_by_default():
    rng = np.random.default_rng(0)
    labels = [label(sample(rng)) for _ in range(4000)]
    for name in LABELS:
        assert labels.count(name) >= 0.2 * len(labels)


def test_settings_reach_their_extremes():
    rng = np.random.default_rng(0)
    plain = GrammarSettings((0, 1, 0, 0, 0), 0.0, opposed=1.0, negation=0.0, weak=0.0, strong=1.0)
    for _ in range(100):
        review = sample(rng, settings=plain)
        assert review.relation == "and"
        assert {value(part) for part in review.clauses} == {-3, 3}
        assert not any(part.negated for part in review.clauses)
    denied = dataclasses.replace(plain, opposed=0.0, negation=1.0, strong=0.0, zipf=50.0)
    for _ in range(100):
        review = sample(rng, settings=denied)
        assert {value(part) for part in review.clauses} in ({-2}, {2})
        assert all(part.negated for part in review.clauses)
        assert [part.predicate for part in review.clauses] == [0, 1]


@pytest.mark.parametrize("opening", [0.0, 1.0])
def test_an_opening_comes_as_often_as_asked(opening):
    rng, settings = np.random.default_rng(0), GrammarSettings(opening=opening)
    for language in LANGUAGES.values():
        for part in CLAUSES:
            text = render(Review(part), language, rng, settings)
            assert text.startswith(language.openings) == bool(opening)
            assert text.count(language.stop) == 1 + bool(opening)


@pytest.mark.parametrize(
    "change",
    [
        {"negation": 1.5},
        {"weak": 0.6, "strong": 0.6},
        {"relations": (1.0,)},
        {"relations": (1,) * 5},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        GrammarSettings(**change)


# Words


@pytest.mark.parametrize("code", LANGUAGES)
def test_word_lists_are_complete_and_distinct(code):
    lexicon = LANGUAGES[code].lexicon
    assert LANGUAGES[code].code == code
    assert lexicon.sizes == LexiconSizes()
    assert len(set(lexicon.aspects)) == len(lexicon.aspects)
    predicates = lexicon.positive + lexicon.negative + lexicon.neutral
    assert len(set(predicates)) == len(predicates)
    assert all(lexicon.aspects + predicates)


@pytest.mark.parametrize("code", LANGUAGES)
def test_polarity_is_seldom_a_matter_of_a_prefix(code):
    lexicon = LANGUAGES[code].lexicon
    pairs = list(itertools.product(lexicon.positive, lexicon.negative))
    assert not [pair for pair in pairs if pair[1].startswith(pair[0])]
    assert not [pair for pair in pairs if pair[0].startswith(pair[1])]
    assert sum(bad.endswith(good) for good, bad in pairs) <= 5


# Texts


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_combination_can_be_said(code):
    language, rng = LANGUAGES[code], np.random.default_rng(0)
    for main in CLAUSES:
        assert len(wordings(Review(main), language)) >= 2
        for other, relation in itertools.product(CLAUSES, RELATIONS[1:]):
            other = dataclasses.replace(other, aspect=1, predicate=4)
            text = render(Review(main, other, relation), language, rng)
            nouns = [language.lexicon.aspects[part].split()[-1] for part in (0, 1)]
            assert all(noun in text for noun in nouns)
            assert (text.index(nouns[0]) < text.index(nouns[1])) == (
                relation in ("and", "although_last")
            )


@pytest.mark.parametrize("code", LANGUAGES)
def test_texts_are_deterministic_and_tidy(code):
    drawn = samples(code, 1000)
    assert drawn == samples(code, 1000)
    texts = [text for _, text in drawn]
    assert len(set(texts)) > 900
    for text in texts:
        assert text.endswith(LANGUAGES[code].stop)
        assert text[0] == text[0].upper()
        assert not re.search(r"[{}]|  | [,.。，]|^\s|\s$", text)
        for sentence in re.split(r"(?<=\.) ", text):
            assert sentence[0].isupper() or code in ("ja", "zh")


@pytest.mark.parametrize("code", ["ja", "zh"])
def test_japanese_and_chinese_have_no_spaces_nor_latin_letters(code):
    for _, text in samples(code):
        assert not re.search(r"[\s\x00-\x7f]", text)


def test_german_verb_is_last_after_a_conjunction_and_then_first():
    conjunction = r"(?:obwohl|auch wenn|obgleich)"
    shapes = {
        "although_first": rf"{conjunction} d\w+ [^,]* ist, ist d\w+ [^,]*\.$",
        "although_last": rf"d\w+ \w+ ist [^,]*, {conjunction} d\w+ [^,]* ist\.$",
    }
    for review, text in samples("de"):
        if review.relation in shapes:
            assert re.search(shapes[review.relation], text, re.I), text


def test_french_elides_and_takes_the_subjunctive():
    for _, text in samples("fr"):
        assert not re.search(r"\b(?:le|ce) [aeiouéèê]|\bcet [^aeiouéèê]|l' ", text, re.I)
        for conjunction, rest in re.findall(r"(bien que|quoique|même si) ([^,.]*)", text, re.I):
            assert ("soit" in rest) == (conjunction.lower() != "même si"), text
        negation = r"pas|absolument pas|en rien|nullement|ni"
        assert not re.search(
            rf"(?<!n')\best (?:{negation})\b|(?<!ne )\bsoit (?:{negation})\b", text
        )
        assert not re.search(rf"(?:n'est|ne soit) (?!(?:{negation})\b)", text)


def test_spanish_denies_before_the_verb():
    for _, text in samples("es"):
        assert not re.search(r"(?<!no )\bes (?:nada|para nada|en absoluto|ni|demasiado)\b", text)


def test_japanese_predicates_inflect_by_class():
    for review, text in samples("ja"):
        assert not re.search(
            r"な(?:です|である|で、|が)|いだ|るです|いでは|できくな|いる(?:ま|な)", text
        )
        last = review.clauses[-1]
        if review.relation != "although_last":
            assert text.endswith(("です。", "ます。", "ません。"))
        if last.negated:
            assert re.search(r"ない|ありません|ません", text)


def test_chinese_negation_is_never_doubled():
    lexicon = LANGUAGES["zh"].lexicon
    assert not [w for w in lexicon.positive + lexicon.negative if w[0] in "不没有很"]
    for _, text in samples("zh"):
        assert not re.search(r"不不|很很|点很|很(?:和|跟|处于|属于|没有)", text)
