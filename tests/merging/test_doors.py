"""What `merge` refuses."""

import numpy as np
import pytest

from langmerge_jax.errors import InputError
from langmerge_jax.merging import merge


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"de": 1.0, "en": 1.0}, "'ja': no weight for that adapter; give one weight each for de"),
        ({"de": 1, "en": 1, "ja": 1, "zh": 1}, "'zh': no adapter of that name"),
        ({"de": 1.0, "en": np.nan, "ja": 1.0}, "'en' has nan; give a finite number"),
        (dict.fromkeys(("de", "en", "ja"), 0.0), r"all are zero in model.*one must be positive"),
        ({"de": 1.0, "en": -1.0, "ja": 1.0}, r"'en' has -1\.0; .* use `linear` to subtract"),
    ],
)
def test_weights_without_a_meaning_are_refused(make_adapters, weights, message):
    with pytest.raises(InputError, match=message) as error:
        merge(make_adapters(), "ties@0.5", weights=weights)
    assert "\n" not in str(error.value)


def test_no_adapters_are_refused():
    with pytest.raises(InputError, match="no adapters to merge"):
        merge({}, "ties@0.5")


def test_adapters_of_different_bases_are_refused_unless_only_their_names_differ(make_adapters):
    adapters = make_adapters()
    other = make_adapters(shapes={"model.layers.0.q_proj": (24, 10)})
    with pytest.raises(InputError, match=r"'ja': model\.layers\.0\.k_proj is missing"):
        merge({"en": adapters["en"], "ja": other["ja"]}, "linear")
    renamed = make_adapters()["ja"]
    object.__setattr__(renamed, "base", "another name")
    pair = {"en": adapters["en"], "ja": renamed}
    with pytest.raises(InputError, match="set allow_base_mismatch"):
        merge(pair, "linear")
    assert merge(pair, "linear", allow_base_mismatch=True).base == "base"


def test_factor_space_needs_equal_ranks(make_adapters):
    message = r"k_proj: ranks differ \('de' 2, 'en' 4, 'ja' 4\); 'peft/ties@0\.5' combines A and B"
    with pytest.raises(InputError, match=message):
        merge(make_adapters(ranks=(2, 4, 4)), "peft/ties@0.5")


def test_a_module_that_is_not_in_the_merge_is_refused(make_adapters):
    merged = merge(make_adapters(), "ties@0.5")
    with pytest.raises(InputError, match="no module 'lm_head' in this merge; it has model"):
        merged.delta("lm_head")


def test_an_unknown_method_is_refused_before_any_work():
    with pytest.raises(InputError, match="did you mean 'ties'"):
        merge({}, "tiess@0.5")
