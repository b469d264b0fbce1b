"""docs/merging.md says what the engine does."""

import itertools
import json

import pytest

from docs import from_benchmarks, from_recipes
from langmerge_jax.errors import InputError
from langmerge_jax.merging import PRESETS, Recipe, parse
from langmerge_jax.merging.consensus import CONSENSUS
from langmerge_jax.merging.recipe import CONCATENATION
from langmerge_jax.merging.spaces import SPACES
from langmerge_jax.merging.sparsify import SPARSIFIERS


@pytest.fixture(scope="module")
def page():
    return from_recipes.PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_engine_generates(page):
    assert page == from_recipes.page(), "run python -m docs.from_recipes"


def test_the_table_of_combinations_is_what_a_recipe_accepts(page):
    """A cell says yes exactly where some setting of the options makes a recipe."""
    header = next(line for line in page.splitlines() if line.startswith("| space | sparsifier"))
    assert header.split(" | ")[2:] == [*list(CONSENSUS)[:-1], f"{list(CONSENSUS)[-1]} |"]
    for space, sparsify in itertools.product([*SPACES, CONCATENATION], SPARSIFIERS):
        line = next(x for x in page.splitlines() if x.startswith(f"| {space} | {sparsify} |"))
        told = [cell.strip() == "yes" for cell in line.strip("|").split("|")[2:]]
        assert told == [_accepted(space, sparsify, consensus) for consensus in CONSENSUS], line


def _accepted(space, sparsify, consensus):
    density = None if SPARSIFIERS[sparsify] is None else 0.5
    for options in ({}, {"election": "unweighted", "divisor": "count"}):
        try:
            Recipe(space, sparsify, consensus, density=density, **options)
        except InputError:
            continue
        return True
    return False


def test_every_preset_is_told_with_its_recipe(page):
    for name, preset in PRESETS.items():
        title, recipe = page.split(f"### `{name}`\n\n`")[0], page.split(f"### `{name}`\n\n`")[1]
        assert title
        text = recipe.split("`")[0]
        head, *options = text.split(",")
        density = "" if preset.fields["sparsify"] == "none" else "@0.5"
        told = parse(",".join([head + density, *options]))
        assert told == parse(name + density)


def test_the_page_of_benchmarks_is_made_of_their_results():
    committed = from_benchmarks.PAGE.read_text(encoding="utf-8")
    assert committed == from_benchmarks.page(), "run python -m docs.from_benchmarks"


def test_the_readme_quotes_the_benchmark():
    readme = " ".join((from_benchmarks.ROOT / "README.md").read_text(encoding="utf-8").split())
    found = json.loads(from_benchmarks.RESULTS[0].read_text())["knots_8b"]["findings"]
    seconds = found["ties_knots@1, cold"]["value"]
    ratio = found["ties_knots@1, cold to bare and copy"]["value"]
    assert f"take {seconds:.0f} s by `ties_knots@1` on two cores, {ratio:.1f} times the" in readme
