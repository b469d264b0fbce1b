import ml_dtypes
import numpy as np
import pytest

from langmerge_jax.adapters import Adapter, Factors, check_same_base
from langmerge_jax.errors import InputError

Q3 = "model.layers.3.self_attn.q_proj"


def test_modules_are_kept_in_natural_order(make_adapter):
    paths = [f"model.layers.{i}.self_attn.q_proj" for i in (10, 2, 0, 1)]
    adapter = make_adapter(dict.fromkeys(paths, (4, 6, 2, 1.0)))
    assert list(adapter.modules) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1, 2, 10)]


@pytest.mark.parametrize(
    ("a", "b", "scale", "message"),
    [
        (np.ones((2, 6)), np.ones((4, 3)), 1.0, "rank 2.*rank 3.*must agree"),
        (np.ones((2, 6, 1)), np.ones((4, 2)), 1.0, r"lora_A has shape \(2, 6, 1\)"),
        (np.ones((0, 6)), np.ones((4, 0)), 1.0, r"lora_A has shape \(0, 6\)"),
        (np.ones((2, 6), np.int8), np.ones((4, 2)), 1.0, "lora_A has dtype int8"),
        (np.ones((2, 6)), np.full((4, 2), np.nan), 1.0, "lora_B holds NaN"),
        (np.full((2, 6), np.inf, ml_dtypes.bfloat16), np.ones((4, 2)), 1.0, "lora_A holds NaN"),
        (np.ones((2, 6)), np.ones((4, 2)), np.inf, "scale is inf"),
    ],
)
def test_what_is_no_pair_of_factors_is_refused(a, b, scale, message):
    with pytest.raises(InputError, match=message):
        Factors(a, b, scale)


def test_an_adapter_without_modules_is_refused():
    with pytest.raises(InputError, match="no modules"):
        Adapter({})


def test_delta_is_scale_times_b_times_a():
    factors = Factors(np.array([[1.0, 2.0]]), np.array([[3.0], [5.0]]), 0.5)
    np.testing.assert_array_equal(factors.delta(), [[1.5, 3.0], [2.5, 5.0]])


def test_adapters_of_one_base_model_agree(make_adapter):
    shapes = {Q3: (4, 6, 2, 1.0)}
    other_rank = {Q3: (4, 6, 5, 2.0)}
    adapters = {
        "en": make_adapter(shapes, base="llama"),
        "ja": make_adapter(other_rank, base="llama"),
        "zh": make_adapter(shapes),  # names no base
    }
    check_same_base(adapters)


def test_shapes_that_differ_are_named_with_both_values(make_adapter):
    adapters = {
        "ja": make_adapter({Q3: (4, 2048, 2, 1.0)}),
        "en": make_adapter({Q3: (4, 4096, 2, 1.0)}),
    }
    with pytest.raises(InputError) as error:
        check_same_base(adapters)
    assert str(error.value) == (
        "adapter 'ja': model.layers.3.self_attn.q_proj has in=2048, 'en' has 4096; "
        "adapters of different base models cannot be merged"
    )


def test_module_sets_that_differ_are_refused(make_adapter):
    adapters = {
        "en": make_adapter({Q3: (4, 6, 2, 1.0)}),
        "ja": make_adapter({Q3: (4, 6, 2, 1.0), "lm_head": (4, 6, 2, 1.0)}),
    }
    with pytest.raises(InputError, match="adapter 'en': lm_head is missing, 'ja' has it"):
        check_same_base(adapters)


def test_base_names_that_differ_are_refused_unless_that_check_is_off(make_adapter):
    adapters = {
        "de": make_adapter({Q3: (4, 6, 2, 1.0)}),
        "en": make_adapter({Q3: (4, 6, 2, 1.0)}, base="/models/llama"),
        "ja": make_adapter({Q3: (4, 6, 2, 1.0)}, base="meta/llama"),
    }
    with pytest.raises(InputError, match="'ja': base model is 'meta/llama', 'en' has"):
        check_same_base(adapters)
    check_same_base(adapters, check_base_name=False)
