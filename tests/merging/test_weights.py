"""Weights by adapter, by module and by depth, and how they are written down."""

import merge_references
import numpy as np
import pytest

from langmerge_jax.errors import InputError
from langmerge_jax.merging import merge
from langmerge_jax.merging.weights import Weights, read_weights

NAMES = ["de", "en"]
MODULES = [f"model.layers.{layer}.{block}" for layer in range(5) for block in ("q_proj", "mlp.up")]


def weights(given, relative=False, modules=MODULES):
    return Weights(given, NAMES, modules, relative, "a recipe")


def test_no_weights_are_ones():
    assert all(np.array_equal(weights(None).of(path), [1, 1]) for path in MODULES)


def test_a_number_counts_in_all_modules():
    found = weights({"de": 0.5, "en": -3})
    assert all(np.array_equal(found.of(path), [0.5, -3.0]) for path in MODULES)


def test_the_first_pattern_that_matches_counts_and_one_where_none_does():
    found = weights({"de": {"*.2.*": 0.5, "*.mlp.*": 2.0}, "en": 1.0})
    assert found.of("model.layers.2.mlp.up")[0] == 0.5
    assert found.of("model.layers.2.q_proj")[0] == 0.5
    assert found.of("model.layers.3.mlp.up")[0] == 2.0
    assert found.of("model.layers.3.q_proj")[0] == 1.0


def test_two_numbers_go_evenly_from_the_first_layer_to_the_last():
    found = weights({"de": (1.0, 3.0), "en": {"*.mlp.*": (0.0, -4.0)}})
    depth = [found.of(f"model.layers.{layer}.mlp.up").tolist() for layer in range(5)]
    assert depth == [[1.0, 0.0], [1.5, -1.0], [2.0, -2.0], [2.5, -3.0], [3.0, -4.0]]
    assert found.of("model.layers.4.q_proj").tolist() == [3.0, 1.0]


def test_the_first_layer_is_the_first_that_is_adapted_and_towers_count_apart():
    modules = [f"text.layers.{x}.q" for x in (16, 20, 31)] + [f"vision.{x}.q" for x in (0, 1)]
    found = weights({"de": (0.0, 1.0), "en": 1.0}, modules=modules)
    assert [found.of(path)[0] for path in modules] == [0.0, 4 / 15, 1.0, 0.0, 1.0]


def test_one_layer_is_the_first():
    found = weights({"de": (1.0, 3.0), "en": 1.0}, modules=["model.layers.0.q_proj"])
    assert found.of("model.layers.0.q_proj").tolist() == [1.0, 1.0]


def test_relative_weights_have_one_as_the_largest_in_each_module():
    found = weights({"de": {"*.mlp.*": 8.0, "*": 0.5}, "en": 2.0}, relative=True)
    assert found.of("model.layers.0.mlp.up").tolist() == [1.0, 0.25]
    assert found.of("model.layers.0.q_proj").tolist() == [0.25, 1.0]


@pytest.mark.parametrize(
    ("given", "relative", "message"),
    [
        ({"de": 1.0}, False, "'en': no weight for that adapter; give one weight each for de, en"),
        ({"de": 1.0, "en": 1.0, "fr": 1.0}, False, "'fr': no adapter of that name"),
        ({"de": 1.0, "en": np.inf}, False, "'en' has inf; give a finite number"),
        ({"de": (0.0, np.nan), "en": 1.0}, False, "'de' has nan; give a finite number"),
        ({"de": 1.0, "en": -1.0}, True, "'en' has -1.0; .* not negative; use `linear`"),
        ({"de": (1.0, -1.0), "en": 1.0}, True, r"'de' has -0\.5; .* use `linear` to subtract"),
        ({"de": {"*.lm_head": 2.0}, "en": 1.0}, False, r"'\*\.lm_head' matches no module.* model"),
    ],
)
def test_weights_without_a_meaning_are_refused(given, relative, message):
    with pytest.raises(InputError, match=message) as error:
        weights(given, relative)
    assert "\n" not in str(error.value)


def test_a_weight_by_depth_needs_layers():
    with pytest.raises(InputError, match="lm_head has no layer number; give it a weight by"):
        weights({"de": (0.0, 1.0), "en": 1.0}, modules=[*MODULES, "lm_head"])
    found = weights(
        {"de": {"lm_head": 0.5, "*": (0.0, 1.0)}, "en": 1.0}, modules=[*MODULES, "lm_head"]
    )
    assert found.of("lm_head").tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("entries", "up", "q"),
    [
        ([], 1.0, 1.0),
        (["en=2"], 2.0, 2.0),
        (["en=-0.5", "de=1e-3"], -0.5, -0.5),
        (["en=0.5..2"], 1.25, 1.25),
        (["en=-1..-0.5"], -0.75, -0.75),
        (["en:*.mlp.*=2"], 2.0, 1.0),
        (["en:*.q_proj=0..1"], 1.0, 0.5),
        (["en=3", "en:*.mlp.*=2"], 2.0, 3.0),
        (["en:*.mlp.*=2", "en=3"], 2.0, 3.0),
        (["en:*.2.*=5", "en:*.mlp.*=2", "en=3"], 5.0, 5.0),
    ],
)
def test_what_is_written_is_read(entries, up, q):
    """The plain weight of an adapter is for what its patterns leave, wherever it stands."""
    found = weights(read_weights(entries, NAMES))
    assert found.of("model.layers.2.mlp.up")[1] == up
    assert found.of("model.layers.2.q_proj")[1] == q
    assert found.of("model.layers.2.q_proj")[0] == (1e-3 if "de=1e-3" in entries else 1.0)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["en"], "'en' is not name=number"),
        (["=1"], "'=1' is not name=number"),
        (["en="], "'en=' is not name=number"),
        (["en:=1"], "'en:=1' is not name=number"),
        (["fr=1"], "'fr': no adapter of that name; known are de, en"),
        (["en=much"], "'en=much': 'much' is no number"),
        (["en=1.."], "'1..' is no number; give one, or first..last"),
        (["en=1", "en=2"], "'en' is given twice"),
        (["en:*.q=1", "en:*.q=2"], r"'en:\*\.q' is given twice"),
    ],
)
def test_what_cannot_be_read_is_refused(entries, message):
    with pytest.raises(InputError, match=message) as error:
        read_weights(entries, NAMES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", ["ties@0.5", "ties_knots@0.5", "soup", "linear"])
def test_a_merge_takes_the_weights_of_each_module(make_adapters, dense, recipe):
    shapes = {f"layers.{layer}.{x}": (24, 20) for layer in range(3) for x in ("q", "up")}
    adapters = make_adapters(shapes=shapes)
    given = {"de": (0.5, 2.5), "en": {"*.q": 3.0}, "ja": 1.0}
    merged = dense(merge(adapters, recipe, weights=given))
    references = {
        "ties@0.5": lambda deltas, w: merge_references.ties(deltas, w, 0.5),
        "ties_knots@0.5": lambda deltas, w: merge_references.ties_knots(deltas, w, 0.5),
        "soup": merge_references.soup,
        "linear": merge_references.weighted_sum,
    }
    for layer, first in enumerate([0.5, 1.5, 2.5]):
        for name, second in (("q", 3.0), ("up", 1.0)):
            path = f"layers.{layer}.{name}"
            deltas = [merge_references.task_vector(a.modules[path]) for a in adapters.values()]
            expected = references[recipe](deltas, [first, second, 1.0])
            atol = 2e-5 * np.abs(expected).max()
            np.testing.assert_allclose(merged[path], expected, rtol=0, atol=atol)
