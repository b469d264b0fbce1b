import pytest

from langmerge_jax.errors import InputError
from langmerge_jax.merging import PRESETS, Recipe, parse


def test_a_name_is_read_to_the_recipe_it_names():
    assert parse("ties_knots@0.5") == Recipe("knots", "magnitude", "ties", density=0.5)
    assert parse("dare_ties@1") == Recipe("delta", "dare", "ties", density=1.0)
    assert parse("ties@0.2*1.5") == Recipe("delta", "magnitude", "ties", density=0.2, lam=1.5)
    assert parse("linear*0.2") == Recipe("cat", "none", "sum", lam=0.2)
    assert parse("cat") == parse("linear")
    assert parse("knots:none:sum") == Recipe("knots", "none", "sum")


@pytest.mark.parametrize("density", ["1.0", "0.5", "0.1", "0.30000000000000004", "1e-07"])
@pytest.mark.parametrize("gain", ["", "*0.7", "*-2.0"])
def test_every_recipe_has_a_name_that_is_read_back(density, gain):
    for preset in set(PRESETS) - {"cat"}:
        text = preset if PRESETS[preset][1] == "none" else f"{preset}@{density}"
        assert parse(text + gain).name == text + gain
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
        ("delta:none:peft_ties", "PEFT's rule"),
        ("knots:none:peft_ties", "PEFT's rule"),
    ],
)
def test_a_recipe_without_a_meaning_is_refused_with_the_way_out(text, message):
    with pytest.raises(InputError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)
