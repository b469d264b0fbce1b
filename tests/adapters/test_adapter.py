import dataclasses
import logging

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge_jax.adapters import Adapter, Factors, check_same_base, common_base
from langmerge_jax.adapters.adapter import count_not_finite
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
        (
            np.ones((2, 6)),
            np.full((4, 2), np.nan),
            1.0,
            # Of whatever made it: the loader knows more.
            "lora_B holds 8 NaN or infinite values of 8$",
        ),
        (np.full((2, 6), np.inf, ml_dtypes.bfloat16), np.ones((4, 2)), 1.0, "lora_A holds 12 NaN"),
        (np.ones((2, 6)), np.ones((4, 2)), np.inf, "scale is inf"),
    ],
)
def test_what_is_no_pair_of_factors_is_refused(a, b, scale, message):
    with pytest.raises(InputError, match=message):
        Factors(a, b, scale)


def test_an_adapter_without_modules_is_refused():
    with pytest.raises(InputError, match="no modules"):
        Adapter({})


def test_a_head_that_is_not_finite_is_refused(make_adapter):
    modules = make_adapter({Q3: (4, 6, 2, 1.0)}).modules
    heads = {"score.weight": np.array([[1, np.nan, np.inf]], np.float16)}
    with pytest.raises(InputError, match=r"score\.weight holds 2 NaN or infinite values of 3$"):
        Adapter(modules, heads=heads)
    with pytest.raises(InputError, match=r"score\.weight has dtype int32"):
        Adapter(modules, heads={"score.weight": np.ones((2, 2), np.int32)})


@settings(deadline=None)
@given(
    st.sampled_from([ml_dtypes.bfloat16, np.float16, np.float32, np.float64]),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["C", "transposed", "strided"]),
)
def test_values_that_are_not_finite_are_counted_in_any_layout(dtype, seed, layout):
    """Against numpy, on arrays of random bits."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 256, size=(300, 500 * np.dtype(dtype).itemsize), dtype=np.uint8)
    array = bits.view(dtype)
    array[rng.random(array.shape) < 0.01] = rng.choice([np.nan, np.inf, -np.inf])
    array = {"C": array, "transposed": array.T, "strided": array[::3, 1::2]}[layout]
    with np.errstate(all="ignore"):
        expected = np.count_nonzero(~np.isfinite(array.astype(np.float64)))
    assert expected > 0
    assert count_not_finite(array) == expected


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
    check_same_base(adapters, allow_base_mismatch=True)


@pytest.mark.parametrize(
    ("base", "other"),
    [
        ("unsloth/Llama-3.1-8B-unsloth-bnb-4bit", "meta-llama/Llama-3.1-8B"),
        ("unsloth/llama-3.1-8b-bnb-4bit", "meta-llama/Llama-3.1-8B"),
        ("Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen2.5-7B-GPTQ-Int4", "/models/Qwen2.5-7B/"),
        ("TheBloke/x-gptq-4bit-128g", "mlx-community/x-8bit"),
        ("org/x-nf4", "org/x-FP8"),
        ("org/x-int4", "org/x_int8"),
    ],
)
def test_bases_that_differ_in_quantisation_are_one_with_a_warning(
    make_adapter, caplog, base, other
):
    shapes = {Q3: (4, 6, 2, 1.0)}
    adapters = {x: make_adapter(shapes, base=b) for x, b in {"en": base, "ja": other}.items()}
    with caplog.at_level(logging.WARNING):
        check_same_base(adapters | {"zh": adapters["ja"]})
    (record,) = caplog.records
    assert repr(base) in record.getMessage()
    assert repr(other) in record.getMessage()


@pytest.mark.parametrize(
    ("bases", "expected"),
    [
        (["unsloth/Llama-3.1-8B-bnb-4bit", "meta-llama/Llama-3.1-8B"], "meta-llama/Llama-3.1-8B"),
        (["meta-llama/Llama-3.1-8B", "unsloth/Llama-3.1-8B-bnb-4bit"], "meta-llama/Llama-3.1-8B"),
        ([None, "org/x-AWQ", "org/x-int8"], "org/x-AWQ"),
        ([None, "org/x"], "org/x"),
        ([None, None], None),
        # The first decides where the user let them differ.
        (["org/x-4bit", "org/y"], "org/x-4bit"),
        (["org/y", "org/x"], "org/y"),
    ],
)
def test_the_base_of_a_merge_is_the_full_model_if_one_has_it(make_adapter, bases, expected):
    adapters = {
        name: make_adapter({Q3: (4, 6, 2, 1.0)}, base=base)
        for name, base in zip("abc", bases, strict=False)
    }
    assert common_base(adapters) == expected


def test_two_full_models_are_not_one_for_a_quantised_copy_of_their_name(make_adapter):
    bases = {"de": "org/x-4bit", "en": "runs/a/x", "ja": "runs/b/x"}
    adapters = {n: make_adapter({Q3: (4, 6, 2, 1.0)}, base=base) for n, base in bases.items()}
    with pytest.raises(InputError, match="'ja': base model is 'runs/b/x', 'en' has 'runs/a/x'"):
        check_same_base(adapters)


@pytest.mark.parametrize(
    ("field", "values", "what"),
    [("revision", ("v1", "v2"), "versions"), ("task_type", ("CAUSAL_LM", "SEQ_CLS"), "tasks")],
)
def test_revisions_and_tasks_that_differ_are_refused_unless_that_check_is_off(
    make_adapter, field, values, what
):
    shapes = {Q3: (4, 6, 2, 1.0)}
    adapters = {
        "de": make_adapter(shapes, base="org/x"),  # names none, and agrees with either
        "en": make_adapter(shapes, base="org/x", **{field: values[0]}),
        "ja": make_adapter(shapes, base="org/x", **{field: values[1]}),
    }
    message = (
        f"'ja': {field} is '{values[1]}', 'en' has '{values[0]}'; adapters of different {what}"
    )
    with pytest.raises(InputError, match=message) as error:
        check_same_base(adapters)
    assert "\n" not in str(error.value)
    check_same_base(adapters, allow_base_mismatch=True)
    check_same_base({name: adapters[name] for name in ("de", "ja")})


def test_a_quantised_copy_has_revisions_of_its_own(make_adapter):
    shapes = {Q3: (4, 6, 2, 1.0)}
    adapters = {
        "en": make_adapter(shapes, base="org/x", revision="v1"),
        "ja": make_adapter(shapes, base="other/x-4bit", revision="v2"),
    }
    check_same_base(adapters)


@pytest.mark.parametrize(
    ("base", "other"),
    [
        ("org/Llama-3.1-8B", "org/Llama-3.1-8B-Instruct"),
        ("org/Llama-3.1-8B-bnb-4bit", "org/Llama-3.1-70B"),
        ("org/x-4bit-tuned", "org/x-tuned"),
        ("runs/a/base", "runs/b/base"),
    ],
)
def test_other_bases_are_refused_without_a_warning(make_adapter, caplog, base, other):
    shapes = {Q3: (4, 6, 2, 1.0)}
    adapters = {"en": make_adapter(shapes, base=base), "ja": make_adapter(shapes, base=other)}
    with pytest.raises(InputError, match="allow_base_mismatch"):
        check_same_base(adapters)
    check_same_base(adapters, allow_base_mismatch=True)
    assert not caplog.records


def test_missing_modules_may_be_allowed_and_shapes_may_not(make_adapter):
    adapters = {
        "de": make_adapter({"lm_head": (9, 6, 2, 1.0)}),
        "en": make_adapter({Q3: (4, 6, 2, 1.0)}),
        "ja": make_adapter({Q3: (4, 6, 2, 1.0), "lm_head": (9, 6, 3, 1.0)}),
    }
    with pytest.raises(InputError, match="is missing"):
        check_same_base(adapters)
    check_same_base(adapters, allow_missing=True)
    adapters["zh"] = make_adapter({"lm_head": (8, 6, 2, 1.0)})
    with pytest.raises(InputError, match="'zh': lm_head has out=8, 'de' has 9"):
        check_same_base(adapters, allow_missing=True)


def test_an_embedding_and_a_linear_layer_are_not_one(make_adapter):
    linear = make_adapter({"model.embed_tokens": (6, 6, 2, 1.0)})
    factors = linear.modules["model.embed_tokens"]
    embedding = Adapter({"model.embed_tokens": dataclasses.replace(factors, embedding=True)})
    message = r"'ja': model\.embed_tokens is a linear layer, for 'en' an embedding"
    with pytest.raises(InputError, match=message):
        check_same_base({"en": embedding, "ja": linear})


def test_layouts_of_weights_that_differ_are_refused(make_adapter):
    shapes = {Q3: (6, 6, 2, 1.0)}
    adapters = {"en": make_adapter(shapes), "ja": make_adapter(shapes, fan_in_fan_out=True)}
    with pytest.raises(InputError, match="'ja': fan_in_fan_out is True, 'en' has False"):
        check_same_base(adapters, allow_base_mismatch=True)
