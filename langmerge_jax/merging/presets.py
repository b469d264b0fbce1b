"""The named recipes of papers and peers: what each does, where it comes from, when to use it."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """A recipe by name.

    Attributes:
        fields: Of `Recipe`; density and lambda are the user's.
        formula: What it computes; tau_i is the task vector of adapter i, w_i its weight.
        source: Paper or implementation.
        result: What comes out.
        cost: Where the time goes.
        when: When to take it.
    """

    fields: dict[str, Any]
    formula: str
    source: str
    result: str
    cost: str
    when: str


def _fields(method: str, **options: Any) -> dict[str, Any]:
    space, sparsify, consensus = method.split(":")
    return {"space": space, "sparsify": sparsify, "consensus": consensus} | options


_DENSE = "full rank: fold it into a base, or truncate it"
_SUM_OF_RANKS = "an adapter of at most the sum of the ranks"
_CHEAP = "none to speak of: factors are copied"
_KNOTS_COST = "a basis of the B's, one of each A, one SVD as wide as the sum of the ranks, a module"
_DELTA_COST = "every entry of every delta"
_TIES = "elect sign(sum_i w_i x_i) an entry; sum of agreeing w_i x_i / sum of agreeing w_i"
_PEFT = {"election": "unweighted", "divisor": "count"}
_OFFICIAL = {"scope": "global", "zero_sign": "majority"} | _PEFT

PRESETS: dict[str, Preset] = {
    "ties": Preset(
        _fields("delta:magnitude:ties"),
        "x_i = the int(d N) largest entries of tau_i; " + _TIES,
        "Yadav et al., arXiv 2306.01708; mergekit's `ties`",
        _DENSE,
        _DELTA_COST + ", with an exact selection",
        "the paper's TIES; small updates that all adapters make outvote large ones of one",
    ),
    "dare_ties": Preset(
        _fields("delta:dare:ties"),
        "x_i = tau_i / d where a coin of probability d falls heads, else 0; " + _TIES,
        "Yu et al., arXiv 2311.03099, with TIES' consensus",
        _DENSE,
        _DELTA_COST + ", with a random number each",
        "the paper's DARE-TIES; less interference between many adapters, at the price of noise",
    ),
    "ties_knots": Preset(
        _fields("knots:magnitude:ties"),
        "[tau_1 | ... | tau_n] = U S V; x_i = the int(d N) largest entries of S V_i; "
        + _TIES
        + "; U times that",
        "Stoica et al., arXiv 2410.19735, per module",
        _SUM_OF_RANKS,
        _KNOTS_COST,
        "the first choice: what TIES does, in directions the adapters share, and an adapter again",
    ),
    "dare_ties_knots": Preset(
        _fields("knots:dare:ties"),
        "as `ties_knots`, with coins on the entries of S V_i",
        "Stoica et al., arXiv 2410.19735, with DARE",
        _SUM_OF_RANKS,
        _KNOTS_COST + ", and a random number for each coordinate",
        "the paper's DARE-TIES-KnOTS",
    ),
    "linear": Preset(
        _fields("cat:none:sum"),
        "sum_i w_i tau_i, exactly, as A's stacked over B's side by side",
        "task arithmetic, Ilharco et al., arXiv 2212.04089; PEFT's `cat`",
        "an adapter of the sum of the ranks",
        _CHEAP,
        "adapters that should add up; signed weights subtract (AdaMergeX)",
    ),
    "cat": Preset(
        _fields("cat:none:sum"),
        "another name of `linear`",
        "PEFT's `cat`",
        "an adapter of the sum of the ranks",
        _CHEAP,
        "as `linear`",
    ),
    "soup": Preset(
        _fields("cat:none:mean"),
        "sum_i w_i tau_i / sum_i w_i",
        "Wortsman et al., arXiv 2203.05482; mergekit's `linear`",
        "an adapter of the sum of the ranks",
        _CHEAP,
        "adapters of one task, averaged: never larger than the largest of them",
    ),
    "svd": Preset(
        _fields("cat:none:sum", rank="inputs"),
        "the closest adapter of the inputs' rank to sum_i w_i tau_i",
        "PEFT's `svd`; Eckart & Young 1936",
        "an adapter of the highest rank of the inputs, unless `rank` says another",
        "a QR of the A's and of the B's, one SVD as wide as the sum of the ranks, a module",
        "a sum that must not grow in rank",
    ),
    "ties_core": Preset(
        _fields("core:magnitude:ties"),
        "M_i = U_b^T tau_i V_a in bases of all B's and all A's; x_i = its int(d N) largest; "
        + _TIES
        + "; U_b times that times V_a^T",
        "Panariello et al., Core Space, arXiv 2509.17786",
        _SUM_OF_RANKS,
        "two bases and two SVDs as wide as the sum of the ranks, a module",
        "the smallest coordinates: many adapters, or very wide modules",
    ),
    "dare_ties_core": Preset(
        _fields("core:dare:ties"),
        "as `ties_core`, with coins on the entries of M_i",
        "Core Space, arXiv 2509.17786, with DARE",
        _SUM_OF_RANKS,
        "two bases and two SVDs as wide as the sum of the ranks, a module",
        "as `ties_core`",
    ),
    "dare_linear": Preset(
        _fields("delta:dare:sum"),
        "sum_i w_i x_i, x_i = tau_i / d where a coin of probability d falls heads, else 0",
        "Yu et al., arXiv 2311.03099",
        _DENSE,
        _DELTA_COST + ", with a random number each",
        "DARE alone: `linear` on average, with noise",
    ),
    "della": Preset(
        _fields("delta:della:ties"),
        "x_i = tau_i / p with probability p, which grows with the rank in its row from "
        "d - epsilon to d + epsilon, else 0; " + _TIES,
        "Deep et al., arXiv 2406.11617",
        _DENSE,
        "a sort of every row of every delta: the slowest",
        "between `ties` and `dare_ties`: random, but kinder to large entries",
    ),
    "della_linear": Preset(
        _fields("delta:della:sum"),
        "as `della`, summed: sum_i w_i x_i",
        "Deep et al., arXiv 2406.11617",
        _DENSE,
        "a sort of every row of every delta: the slowest",
        "as `dare_linear`",
    ),
    "breadcrumbs": Preset(
        _fields("delta:breadcrumbs:sum"),
        "sum_i w_i x_i, x_i = tau_i without its int(gamma N) largest, of the rest the int(d N) "
        "largest",
        "Davari & Belilovsky, arXiv 2312.06795",
        _DENSE,
        _DELTA_COST + ", with two exact selections",
        "adapters with outliers that harm the others",
    ),
    "breadcrumbs_ties": Preset(
        _fields("delta:breadcrumbs:ties"),
        "x_i as for `breadcrumbs`; " + _TIES,
        "arXiv 2312.06795 with TIES' consensus",
        _DENSE,
        _DELTA_COST + ", with two exact selections",
        "as `breadcrumbs`, with conflicts of sign resolved",
    ),
    "sce": Preset(
        _fields("delta:sce:sce"),
        "keep the int(d N') entries of largest variance over the adapters, N' those that vary; "
        "elect sign(sum_i x_i); sum of agreeing v_i x_i / sum of agreeing v_i, "
        "v_i = w_i mean(x_i^2)",
        "Wan et al., arXiv 2408.07990",
        _DENSE,
        _DELTA_COST + ", with an exact selection",
        "adapters of different tasks, each strong somewhere else",
    ),
    "peft/linear": Preset(
        _fields("factor:none:sum"),
        "A = sum_i +-sqrt|w_i s_i| A_i, B = sum_i sqrt|w_i s_i| B_i",
        "PEFT's `linear`",
        "an adapter of the inputs' rank",
        _CHEAP,
        "to reproduce PEFT; it has cross terms B_i A_j and is no sum of task vectors",
    ),
    "peft/ties": Preset(
        _fields("factor:magnitude:ties", **_PEFT),
        "TIES on A and on B apart: election without weights, w_i as gains, divided by the count",
        "PEFT's `ties`",
        "an adapter of the inputs' rank",
        "every entry of A and B",
        "to reproduce PEFT",
    ),
    "peft/dare_linear": Preset(
        _fields("factor:dare:sum"),
        "`peft/linear` after DARE on A and on B apart",
        "PEFT's `dare_linear`",
        "an adapter of the inputs' rank",
        "every entry of A and B",
        "to reproduce PEFT",
    ),
    "peft/dare_ties": Preset(
        _fields("factor:dare:ties", **_PEFT),
        "`peft/ties` with DARE for the trim",
        "PEFT's `dare_ties`",
        "an adapter of the inputs' rank",
        "every entry of A and B",
        "to reproduce PEFT",
    ),
    "peft/magnitude_prune": Preset(
        _fields("factor:magnitude:sum"),
        "`peft/linear` after a trim of A and of B apart",
        "PEFT's `magnitude_prune`",
        "an adapter of the inputs' rank",
        "every entry of A and B",
        "to reproduce PEFT",
    ),
    "peft/cat": Preset(
        _fields("cat:none:sum"),
        "`linear`",
        "PEFT's `cat`",
        "an adapter of the sum of the ranks",
        _CHEAP,
        "to reproduce PEFT",
    ),
    "peft/svd": Preset(
        _fields("cat:none:sum", rank="inputs"),
        "`svd`",
        "PEFT's `svd`, from 0.21 (before, it scaled twice)",
        "an adapter of the highest rank of the inputs",
        "as `svd`",
        "to reproduce PEFT; it computes `linear` instead of one adapter alone",
    ),
    "peft/ties_svd": Preset(
        _fields("delta:magnitude:ties", rank="inputs", **_PEFT),
        "TIES on task vectors by PEFT's rule, truncated to the inputs' rank",
        "PEFT's `ties_svd`, from 0.21",
        "an adapter of the highest rank of the inputs",
        _DELTA_COST + ", and a truncated SVD of each module",
        "to reproduce PEFT; it computes `linear` instead of one adapter alone",
    ),
    "peft/dare_linear_svd": Preset(
        _fields("delta:dare:sum", rank="inputs"),
        "`dare_linear`, truncated to the inputs' rank",
        "PEFT's `dare_linear_svd`, from 0.21",
        "an adapter of the highest rank of the inputs",
        _DELTA_COST + ", and a truncated SVD of each module",
        "to reproduce PEFT; it computes `linear` instead of one adapter alone",
    ),
    "peft/dare_ties_svd": Preset(
        _fields("delta:dare:ties", rank="inputs", **_PEFT),
        "`peft/ties_svd` with DARE for the trim",
        "PEFT's `dare_ties_svd`, from 0.21",
        "an adapter of the highest rank of the inputs",
        _DELTA_COST + ", and a truncated SVD of each module",
        "to reproduce PEFT; it computes `linear` instead of one adapter alone",
    ),
    "peft/magnitude_prune_svd": Preset(
        _fields("delta:magnitude:sum", rank="inputs"),
        "the sum of trimmed task vectors, truncated to the inputs' rank",
        "PEFT's `magnitude_prune_svd`, from 0.21",
        "an adapter of the highest rank of the inputs",
        _DELTA_COST + ", and a truncated SVD of each module",
        "to reproduce PEFT; it computes `linear` instead of one adapter alone",
    ),
    "mergekit/linear": Preset(
        _fields("cat:none:mean"),
        "`soup`",
        "mergekit's `linear`",
        "an adapter of the sum of the ranks",
        _CHEAP,
        "to reproduce mergekit",
    ),
    "mergekit/task_arithmetic": Preset(
        _fields("cat:none:sum"),
        "`linear`",
        "mergekit's `task_arithmetic`",
        "an adapter of the sum of the ranks",
        _CHEAP,
        "to reproduce mergekit",
    ),
    "mergekit/ties": Preset(
        _fields("delta:magnitude_mergekit:ties"),
        "`ties`, keeping one entry where int(d N) is 0",
        "mergekit's `ties`",
        _DENSE,
        _DELTA_COST + ", with an exact selection",
        "to reproduce mergekit, without its rounding of the merged model",
    ),
    "mergekit/dare_linear": Preset(
        _fields("delta:dare:sum", rescale="l1"),
        "`dare_linear`, rescaled to the L1 norm instead of by 1/d",
        "mergekit's `dare_linear`, from 0.1",
        _DENSE,
        _DELTA_COST + ", with a random number each",
        "to reproduce mergekit",
    ),
    "mergekit/dare_ties": Preset(
        _fields("delta:dare:ties", rescale="l1", divisor="none"),
        "`dare_ties`, rescaled to the L1 norm, the agreeing summed and not averaged",
        "mergekit's `dare_ties`, from 0.1, with its default normalize=False",
        _DENSE,
        _DELTA_COST + ", with a random number each",
        "to reproduce mergekit",
    ),
    "mergekit/della": Preset(
        _fields("delta:della:ties", rescale="l1"),
        "`della`, rescaled to the L1 norm",
        "mergekit's `della`",
        _DENSE,
        "a sort of every row of every delta: the slowest",
        "to reproduce mergekit",
    ),
    "mergekit/della_linear": Preset(
        _fields("delta:della:sum", rescale="l1"),
        "`della_linear`, rescaled to the L1 norm",
        "mergekit's `della_linear`",
        _DENSE,
        "a sort of every row of every delta: the slowest",
        "to reproduce mergekit",
    ),
    "mergekit/breadcrumbs": Preset(
        _fields("delta:breadcrumbs:sum"),
        "`breadcrumbs`",
        "mergekit's `breadcrumbs`, from 0.1.5 (0.1.4 zeroes all where int(gamma N) is 0)",
        _DENSE,
        _DELTA_COST + ", with two exact selections",
        "to reproduce mergekit",
    ),
    "mergekit/breadcrumbs_ties": Preset(
        _fields("delta:breadcrumbs:ties", divisor="none"),
        "`breadcrumbs_ties`, the agreeing summed and not averaged",
        "mergekit's `breadcrumbs_ties`, from 0.1.5, with its default normalize=False",
        _DENSE,
        _DELTA_COST + ", with two exact selections",
        "to reproduce mergekit",
    ),
    "mergekit/sce": Preset(
        _fields("delta:sce:sce_mergekit"),
        "`sce`, with equal v_i where their sum is below 1e-6, as it is for most LoRA",
        "mergekit's `sce`",
        _DENSE,
        _DELTA_COST + ", with an exact selection",
        "to reproduce mergekit",
    ),
    "ties/official": Preset(
        _fields("delta:magnitude_official:ties", **_OFFICIAL),
        "`ties` ranked over all modules at once, keeping one entry more and all that tie; election "
        "without weights, divided by the count",
        "the TIES authors' notebook and `merging_functions.py`; one coefficient for all: lambda",
        _DENSE,
        _DELTA_COST + ", four times: two to find the threshold, one for the majority, one to merge",
        "to reproduce the official code",
    ),
    "knots/official": Preset(
        _fields("knots_official:magnitude_official:ties", **_OFFICIAL),
        "`ties_knots` ranked over all modules at once, keeping one entry more and all that tie, on "
        "B A without alpha / rank and without singular values up to 1e-5; election without "
        "weights, divided by the count",
        "the KnOTS authors' `SVDMerger`; one coefficient for all: lambda",
        _SUM_OF_RANKS,
        _KNOTS_COST + ", four times",
        "to reproduce the official code",
    ),
}
