import pytest

from langmerge_jax.errors import InputError
from langmerge_jax.merging import PRESETS, Recipe, parse


def test_a_name_is_read_to_the_recipe_it_names():
    assert parse("ties_knots@0.5") == Recipe("knots", "magnitude", "ties", density=0.5)
    assert parse("dare_ties@1") == Recipe("delta", "dare", "ties", density=1.0)
    assert parse("ties@0.2*1.5") == Recipe("delta", "magnitude", "ties", density=0.2, lam=1.5)
    assert parse("linear*0.2") == Recipe("cat", "none", "sum", lam=0.2)
    assert parse("cat") == parse("linear")
    assert parse("ties@0.5,rank=64,scope=global") == Recipe(
        "delta", "magnitude", "ties", density=0.5, rank=64, scope="global"
    )
    assert parse("peft/ties_svd@0.5,rank=8").rank == 8
    assert parse("peft/ties_svd@0.5,rank=8").name == "peft/ties_svd@0.5,rank=8"
    assert parse("svd,rank=0.95").rank == 0.95
    assert parse("svd,rank=exact").name == "linear"
    assert parse("knots:none:sum") == Recipe("knots", "none", "sum")


@pytest.mark.parametrize("density", ["1.0", "0.5", "0.1", "0.30000000000000004", "1e-07"])
@pytest.mark.parametrize("gain", ["", "*0.7", "*-2.0"])
def test_every_recipe_has_a_name_that_is_read_back(density, gain):
    for name, preset in PRESETS.items():
        text = name if preset.fields["sparsify"] == "none" else f"{name}@{density}"
        text = text + gain + (",epsilon=1e-09" if "della" in name else "")
        recipe = parse(text)
        assert parse(recipe.name) == recipe
        # Of two names for one recipe, the first is its own.
        first = next(n for n, p in PRESETS.items() if p.fields == preset.fields)
        assert recipe.name == text.replace(name, first, 1)
    assert parse(f"knots:dare:sum@{density}{gain}").name == f"knots:dare:sum@{density}{gain}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tie_knots@0.5", "unknown method 'tie_knots'; did you mean 'ties_knots'"),
        ("ties-knots", "did you mean 'ties_knots'"),
        ("slerp", "unknown method 'slerp'; known are ties, dare_ties,"),
        ("", "unknown method ''"),
        ("ties", "'ties' needs a density.* write ties@0.5"),
        ("ties@0", "density is 0"),
        ("ties@1.01", "density is 1.01"),
        ("ties@-0.5", "density is -0.5"),
        ("ties@nan", "density is nan"),
        ("ties@half", "density is 'half', no number"),
        ("ties@0.5*", "lambda is '', no number"),
        ("ties@0.5*inf", "lambda is inf"),
        ("linear@0.5", "'linear' drops nothing and has no density, got 0.5"),
        ("moon:none:sum", "unknown space 'moon'"),
        ("knots:drop:sum", "unknown sparsifier 'drop'"),
        ("knots:none:vote", "unknown consensus 'vote'"),
        ("delta:none:sum", "this is `linear`"),
        ("cat:magnitude:sum@0.5", "no longer the exact sum"),
        ("cat:none:ties", "no common entries"),
        ("factor:none:ties", "square roots"),
        ("factor:none:ties,election=unweighted", "weigh no mean"),
        ("factor:none:mean", "is not the mean of B A"),
        ("factor:della:sum@0.5", "no such type"),
        ("factor:none:sce", "no such type"),
        ("peft/ties@0.5,scope=global", "on their own"),
        ("ties@0.5,scope=modul", "unknown scope .*did you mean 'module'"),
        ("ties@0.5,rank=0", "rank is 0"),
        ("ties@0.5,rank=1.5", "rank is 1.5"),
        ("ties@0.5,rank=few", "rank is nan"),
        ("ties@0.5,rank", "'rank' is not option=value"),
        ("ties@0.5,gama=1", "unknown option 'gama'; did you mean 'gamma'"),
        ("ties@0.5,gamma=0.1", "gamma=0.1 means nothing without sparsify breadcrumbs"),
        ("linear,scope=global", "means nothing without sparsify magnitude"),
        ("della@0.9", "leaves .* give epsilon="),
        ("della@0.9,epsilon=-1", "epsilon is -1"),
    ],
)
def test_a_recipe_without_a_meaning_is_refused_with_the_way_out(text, message):
    with pytest.raises(InputError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)
