"""Chinese (simplified). No copula: an adjective needs 很 when it is neither graded nor negated.

No predicate begins with 不, 没 or 有, whose negation would not be a plain 不. Neutral predicates
are complete as they stand.
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
        电池, 屏幕, 价格, 音质, 物流, 外壳, 键盘, 摄像头, 设计, 包装, 软件, 充电器, 说明书, 服务
    """),
    positive=words("""
        好, 棒, 令人满意, 给力, 出色, 优秀, 靠谱, 良心, 理想, 让人放心, 值得推荐, 到位, 吸引人,
        完美, 超值, 惊艳, 令人惊喜, 实在, 讨人喜欢, 亮眼, 省心, 诱人, 让人安心, 值得称赞, 用心,
        令人心动, 优异, 贴心, 讨喜, 称心, 值得信赖, 迷人, 令人愉快, 卓越, 高明, 舒心, 令人赞叹,
        优越, 可取, 令人欣慰
    """),
    negative=words("""
        差, 糟糕, 烂, 令人失望, 差劲, 垃圾, 坑人, 烦人, 离谱, 让人头疼, 失败, 讨厌, 让人无语, 气人,
        让人心烦, 可笑, 令人担心, 闹心, 恶心, 令人恼火, 尴尬, 糟心, 扫兴, 可疑, 令人遗憾, 让人后悔,
        荒唐, 让人郁闷, 敷衍, 令人反感, 丢人, 可恶, 别扭, 令人沮丧, 蹩脚, 可悲, 寒酸, 荒谬, 恼人,
        拙劣
    """),
    neutral=words("""
        跟预期一样, 处于中等水平, 和描述一致, 不好不坏, 属于平均水平, 跟其他产品一样, 中规中矩,
        在预料之中, 和别家差不多, 跟以前一样, 没有变化, 属于正常范围, 和广告一样, 说不上好坏
    """),
)

_STRONG = ("非常{}", "特别{}", "十分{}", "极其{}")
GRADING = Grading(
    positive={"weak": ("还算{}", "比较{}", "算是比较{}"), "plain": ("很{}",), "strong": _STRONG},
    negative={
        "weak": ("有点{}", "稍微有点{}", "多少有点{}"),
        "plain": ("很{}",),
        "strong": _STRONG,
    },
    negated={
        "weak": ("不太{}", "不是很{}", "不怎么{}"),
        "plain": ("不{}",),
        "strong": ("一点也不{}", "一点都不{}", "完全不{}", "根本不{}"),
    },
)

LINKS = {
    "single": (Link("{main}"),),
    "and": (Link("{main}，{other}"), Link("{main}；{other}"), Link("{main}，另外{other}")),
    "but": (
        Link("{other}，但是{main}"),
        Link("{other}，不过{main}"),
        Link("{other}，可是{main}"),
        Link("{other}。然而，{main}"),
    ),
    "although_first": (
        Link("虽然{other}，但是{main}"),
        Link("尽管{other}，但{main}"),
        Link("虽说{other}，不过{main}"),
    ),
    "although_last": (
        Link("{main}，虽然{other}"),
        Link("{main}，尽管{other}"),
        Link("{main}，虽说{other}"),
    ),
}

OPENINGS = (
    "上个月买的。",
    "用了两周了。",
    "星期二收到的。",
    "给公司订的。",
    "这是第二台了。",
    "买给弟弟用的。",
    "说说我的感受。",
    "每天都在用。",
)


def realise(clause: Clause, form: str, opens: bool, rng: np.random.Generator) -> str:
    """Subject and predicate; there is one form."""
    owner = pick(rng, ("", "", "它的", "这款产品的")) if opens else ""
    complement = GRADING.complement(clause, LEXICON.predicate(clause), rng)
    return f"{owner}{LEXICON.aspects[clause.aspect]}{complement}"


LANGUAGE = Language("zh", "Chinese", LEXICON, LINKS, OPENINGS, realise, stop="。", space="")
