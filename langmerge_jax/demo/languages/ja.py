"""Japanese, in the polite style.

A predicate is written as it stands before a noun, which gives its class: い an i-adjective, な a
na-adjective (or a noun that behaves as one before のに), る a verb that drops る.
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
        バッテリー, 画面, 価格, 音質, 配送, ケース, キーボード, カメラ, デザイン, 梱包, ソフト,
        充電器, 説明書, サービス
    """),
    positive=words("""
        良い, 満足できる, 素晴らしい, 魅力的な, 優秀な, 素敵な, おすすめできる, 納得できる,
        優れている, 安心できる, ありがたい, 嬉しい, 立派な, 信頼できる, 見事な, 好印象な, 理想的な,
        評価できる, 好感が持てる, 好ましい, 良心的な, 頼もしい, 良好な, 適切な, 感動的な, 画期的な,
        秀逸な, 合理的な, 上出来な, 心地よい, 有益な, 気が利いている, 洗練されている, 絶妙な,
        効果的な, 上等な, 優良な, 喜ばしい, 自慢できる, 魅惑的な
    """),
    negative=words("""
        悪い, 残念な, ひどい, 不満な, 駄目な, 嫌な, 期待外れな, つらい, 不快な, 不安な, 劣っている,
        心配な, 厄介な, 中途半端な, お粗末な, 迷惑な, 面倒な, 不適切な, 怪しい, いい加減な, 悲しい,
        腹立たしい, 恥ずかしい, 馬鹿げている, 疑わしい, 不愉快な, 煩わしい, 鬱陶しい, 悲惨な,
        もどかしい, 無意味な, 不親切な, 理不尽な, 劣悪な, 苛立たしい, 滑稽な, 惨めな, 嘆かわしい,
        馬鹿らしい, 忌々しい
    """),
    neutral=words("""
        普通な, 平均的な, 標準的な, 予想通りな, 一般的な, 説明通りな, いつも通りな,
        良くも悪くもない, 他の製品と同じな, 以前と同様な, 典型的な, 広告通りな, 中間的な,
        想定内な
    """),
)

_STRONG = ("とても{}", "非常に{}", "かなり{}", "本当に{}")
# The adverbs only: `_inflect` denies the predicate itself.
GRADING = Grading(
    positive={"weak": ("割と{}", "比較的{}", "それなりに{}"), "plain": ("{}",), "strong": _STRONG},
    negative={"weak": ("少し{}", "やや{}", "ちょっと{}"), "plain": ("{}",), "strong": _STRONG},
    negated={
        "weak": ("あまり{}", "それほど{}", "そこまで{}"),
        "plain": ("{}",),
        "strong": ("全く{}", "全然{}", "少しも{}"),
    },
)

LINKS = {
    "single": (Link("{main}"),),
    "and": (
        Link("{main}、{other}", main="continuative"),
        Link("{main}。そして、{other}"),
        Link("{main}。また、{other}"),
    ),
    "but": (
        Link("{other}が、{main}"),
        Link("{other}けれど、{main}"),
        Link("{other}。しかし、{main}"),
        Link("{other}。でも、{main}"),
    ),
    "although_first": (
        Link("{other}のに、{main}", other="attributive"),
        Link("{other}ものの、{main}", other="formal"),
        Link("{other}にもかかわらず、{main}", other="formal"),
    ),
    # The main clause can only come first as a sentence of its own, with an afterthought.
    "although_last": (
        Link("{main}。{other}けれど"),
        Link("{main}。もっとも、{other}が"),
        Link("{main}。{other}のに", other="attributive"),
    ),
}

OPENINGS = (
    "先月購入しました。",
    "二週間使っています。",
    "火曜日に届きました。",
    "会社用に注文しました。",
    "これで二台目です。",
    "弟のために買いました。",
    "感想を書きます。",
    "毎日使っています。",
)


def _inflect(entry: str, negated: bool, form: str, rng: np.random.Generator) -> str:
    """A predicate in one of the forms of `realise`."""
    stem, ending = entry[:-1], entry[-1]
    if negated:
        # 良くない, 魅力的ではない, 満足できない: all inflect as an i-adjective in ない.
        root = {"い": stem + "く", "な": stem + "では", "る": stem}[ending]
        if form == "main":
            polite = "ません" if ending == "る" else "ありません"
            return root + pick(rng, (polite, "ないです"))
        if form == "continuative" and ending == "る":
            return stem[:-1] + "おらず" if entry.endswith("ている") else stem + "ず"
        return root + ("なく" if form == "continuative" else "ない")
    if form == "main":
        return {"い": entry + "です", "な": stem + "です", "る": stem + "ます"}[ending]
    if form == "continuative":
        verb = stem[:-1] + "おり" if entry.endswith("ている") else stem
        return {"い": stem + "く", "な": stem + "で", "る": verb}[ending]
    return stem + "である" if form == "formal" and ending == "な" else entry


def realise(clause: Clause, form: str, opens: bool, rng: np.random.Generator) -> str:
    """A clause that ends in the form its link needs.

    "main" is polite (良いです), "continuative" goes on (良く), "attributive" stands before のに
    (魅力的な) and "formal" before ものの (魅力的である), which fits nouns too.
    """
    owner = pick(rng, ("", "", "この", "この製品の")) if opens else ""
    predicate = _inflect(LEXICON.predicate(clause), clause.negated, form, rng)
    complement = GRADING.complement(clause, predicate, rng)
    return f"{owner}{LEXICON.aspects[clause.aspect]}は{complement}"


LANGUAGE = Language("ja", "Japanese", LEXICON, LINKS, OPENINGS, realise, stop="。", space="")
