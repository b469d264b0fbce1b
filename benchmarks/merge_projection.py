"""Merges of one projection in memory: against KnOTS' own procedure and PEFT, and as adapters grow.

Ours goes through the public `merge`, from adapters in memory to arrays on the host.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from benchmarks import measuring, merge_peers
from benchmarks.measuring import Section
from benchmarks.merge_inputs import random_adapters
from langmerge_jax.adapters import Adapter
from langmerge_jax.merging import merge

SIDE, SMALL_SIDE = 4096, 1024
RANK, COUNT = 64, 5

_GROWTH_RANK = 16
_GROWTH_COUNTS = (2, 5, 10, 20, 50)
_GROWTH_RECIPES = ("ties_knots@0.5", "ties@0.5", "ties_core@0.5", "linear")

# The full-rank delta that `peft/ties_svd` and `peft/dare_ties_svd` truncate.
_WHOLE = {
    "ties_svd": "ties@0.5,election=unweighted,divisor=count",
    "dare_ties_svd": "dare_ties@0.5,election=unweighted,divisor=count",
}


def merged(adapters: dict[str, Adapter], recipe: str) -> list[np.ndarray]:
    """What the public door makes of adapters, on the host: A and B, or the full-rank delta."""
    result = merge(adapters, recipe)
    if isinstance(result, Adapter):
        return [np.asarray(result.modules["proj"].a), np.asarray(result.modules["proj"].b)]
    return [result.delta("proj")]


def ours_once(recipe: str, side: int) -> None:
    """One merge, as a process of its own does it: for cold starts."""
    merged(random_adapters((side, side), COUNT, RANK), recipe)


def peft_once(kind: str, side: int, direct: bool) -> None:
    """One merge of PEFT, likewise."""
    peft = merge_peers.Peft(random_adapters((side, side), COUNT, RANK))
    if direct:
        peft.on_factors(kind, 0.5)
    else:
        peft.add_weighted_adapter(kind, 0.5, svd_rank=RANK, svd_full_matrices=False)


def projection(small: bool, repeats: int) -> Section:
    """One 4096 x 4096 projection of five adapters of rank 64, float32."""
    side = SMALL_SIDE if small else SIDE
    section = Section(out=side, **{"in": side}, adapters=COUNT, rank=RANK, repeats=repeats)
    adapters = random_adapters((side, side), COUNT, RANK)
    _against_knots(section, adapters, side, repeats)
    peft = merge_peers.Peft(adapters)
    for kind in ("ties", "dare_ties"):
        _against_peft_factors(section, adapters, peft, kind, side, repeats)
    for kind in ("ties_svd", "dare_ties_svd"):
        _against_peft_svd(section, adapters, peft, kind, side, repeats)
    return section


def _against_knots(section: Section, adapters: dict[str, Adapter], side: int, repeats: int) -> None:
    factors = [(x.modules["proj"].a, x.modules["proj"].b) for x in adapters.values()]
    official, seconds = merge_peers.knots(factors, (1.0, 0.5))
    recipes = {density: f"ties_knots@{density:g}" for density in official}
    for density, recipe in recipes.items():
        # A trim of the official code keeps one entry more, whose row may be a large one.
        a, b = merged(adapters, recipe)
        apart = _difference(b @ a, official[density])
        section.note(f"{recipe}, difference to transcription", apart, most=0.01)
        with jax.enable_x64(True):
            a, b = merged(adapters, f"knots/official@{density:g}")
        apart = _difference(b @ a, official[density])
        section.note(f"knots/official@{density:g} in float64, difference", apart, most=1e-4)
    warm = measuring.interleaved(
        {recipe: functools.partial(merged, adapters, recipe) for recipe in recipes.values()},
        repeats,
    )
    for density, recipe in recipes.items():
        section.note(f"{recipe}, transcription of KnOTS, one run", seconds[density], "s")
        ours = section.median(f"{recipe}, ours warm", warm[recipe])
        cold = section.median(f"{recipe}, ours cold", _cold(ours_once, repeats, recipe, side))
        section.note(f"{recipe}, times faster warm", seconds[density] / ours, "x", least=500)
        section.note(f"{recipe}, times faster cold", seconds[density] / cold, "x")


def _against_peft_factors(
    section: Section,
    adapters: dict[str, Adapter],
    peft: merge_peers.Peft,
    kind: str,
    side: int,
    repeats: int,
) -> None:
    """PEFT both ways: the merge alone on factors, and through its model; the faster one counts."""
    recipe = f"peft/{kind}@0.5"
    contestants: dict[str, Callable] = {
        "ours": functools.partial(merged, adapters, recipe),
        "PEFT's functions": functools.partial(peft.on_factors, kind, 0.5),
        "PEFT": functools.partial(peft.add_weighted_adapter, kind, 0.5),
    }
    ours, theirs = contestants["ours"](), contestants["PEFT's functions"]()
    contestants["PEFT"]()
    _compare_factors(section, recipe, ours, theirs, random=kind.startswith("dare"))
    # These take milliseconds, so more of them.
    warm = {
        name: section.median(f"{recipe}, {name} warm", seconds)
        for name, seconds in measuring.interleaved(contestants, 7 * repeats).items()
    }
    cold = {
        "ours": _cold(ours_once, repeats, recipe, side),
        "PEFT": _cold(peft_once, repeats, kind, side, True),
    }
    cold = {name: section.median(f"{recipe}, {name} cold", x) for name, x in cold.items()}
    fastest = min(warm["PEFT's functions"], warm["PEFT"])
    section.note(f"{recipe}, times faster warm", fastest / warm["ours"], "x", least=2)
    section.note(f"{recipe}, times faster cold", cold["PEFT"] / cold["ours"], "x")


def _against_peft_svd(
    section: Section,
    adapters: dict[str, Adapter],
    peft: merge_peers.Peft,
    kind: str,
    side: int,
    repeats: int,
) -> None:
    named = f"peft/{kind}@0.5"
    recipe = f"{named},rank={RANK}"

    def theirs(full: bool) -> None:
        peft.add_weighted_adapter(kind, 0.5, svd_rank=RANK, svd_full_matrices=full)

    # Its svd_driver names a routine of cuSOLVER and is refused on a CPU.
    tried = {full: measuring.timed(functools.partial(theirs, full)) for full in (True, False)}
    section.seconds[f"{named}, PEFT with svd_full_matrices true, false"] = [
        round(x, 3) for x in tried.values()
    ]
    (ours_a, ours_b), (delta,) = merged(adapters, recipe), merged(adapters, _WHOLE[kind])
    rest = np.linalg.norm(delta - ours_b @ ours_a) / np.linalg.norm(delta)
    kept, best = 1 - rest**2, merge_peers.best_energy(delta, RANK)
    section.note(f"{named}, energy kept", kept)
    section.note(f"{named}, energy of the full SVD", best)
    section.note(f"{named}, share of that", kept / best, least=0.99)
    if not kind.startswith("dare"):
        a, b = peft.result()
        rest = np.linalg.norm(delta - b @ a) / np.linalg.norm(delta)
        section.note(f"{named}, energy kept by PEFT", 1 - rest**2)
    warm = measuring.interleaved(
        {
            "ours": functools.partial(merged, adapters, recipe),
            "PEFT": functools.partial(theirs, min(tried, key=tried.get)),
        },
        repeats,
    )
    warm = {name: section.median(f"{named}, {name} warm", x) for name, x in warm.items()}
    cold = {
        "ours": _cold(ours_once, repeats, recipe, side),
        "PEFT": _cold(peft_once, 1, kind, side, False),
    }
    cold = {name: section.median(f"{named}, {name} cold", x) for name, x in cold.items()}
    section.note(f"{named}, times faster warm", warm["PEFT"] / warm["ours"], "x", least=10)
    section.note(f"{named}, times faster cold", cold["PEFT"] / cold["ours"], "x")


def _compare_factors(
    section: Section,
    recipe: str,
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    *,
    random: bool,
) -> None:
    """Entries are compared, or where each draws its own masks, how large the factors come out."""
    if random:
        norms = [np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(ours, theirs, strict=True)]
        section.note(f"{recipe}, norm to PEFT's", max(abs(x - 1) for x in norms), most=0.01)
    else:
        apart = max(_difference(x, y) for x, y in zip(ours, theirs, strict=True))
        section.note(f"{recipe}, difference to PEFT", apart, most=1e-5)


def _cold(function: Callable, repeats: int, *arguments) -> list[float]:
    return [measuring.call(function, *arguments)[0].seconds for _ in range(repeats)]


def _difference(x: np.ndarray, y: np.ndarray) -> float:
    """Of x to y, as a share of y's norm."""
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def growth(small: bool, repeats: int) -> Section:
    """2 to 50 adapters of rank 16 on one 4096 x 4096 projection: how the time grows."""
    side = SMALL_SIDE if small else SIDE
    section = Section(out=side, **{"in": side}, rank=_GROWTH_RANK, repeats=repeats)
    everyone = random_adapters((side, side), max(_GROWTH_COUNTS), _GROWTH_RANK)
    contestants = {}
    for recipe in _GROWTH_RECIPES:
        for count in _GROWTH_COUNTS:
            adapters = dict(list(everyone.items())[:count])
            contestants[recipe, count] = functools.partial(merged, adapters, recipe)
            contestants[recipe, count]()
    seconds = measuring.interleaved(contestants, repeats)
    for recipe in _GROWTH_RECIPES:
        medians = [
            section.median(f"{recipe}, {count} adapters", seconds[recipe, count])
            for count in _GROWTH_COUNTS
        ]
        exponent = np.polyfit(np.log(_GROWTH_COUNTS), np.log(medians), 1)[0]
        section.note(f"{recipe}, exponent", exponent)
    return section
