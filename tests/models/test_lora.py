"""LoRA in the linear layer: initial values, scale, targets and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from langmerge_jax.errors import InputError
from langmerge_jax.models.lora import Active, LoraLinear, LoraSpec, targets_of
from langmerge_jax.models.stacking import init_lora

PROJECTIONS = ("q_proj", "k_proj", "up_proj")


def test_targets_are_named_as_in_peft():
    assert targets_of(("up_proj", "q_proj"), PROJECTIONS) == ("q_proj", "up_proj")
    assert targets_of(("all-linear",), PROJECTIONS) == PROJECTIONS
    for names in ((), ("q_proj", "query"), ("all-linear", "wq")):
        with pytest.raises(InputError, match=r"lora.targets=.*q_proj, k_proj, up_proj"):
            targets_of(names, PROJECTIONS)


def test_fresh_factors_are_those_of_peft(tiny_config):
    """A uniform in +-1/sqrt(in), B zero; an adapter's own whichever others there are."""
    spec = LoraSpec(2, 64, ("q_proj", "down_proj"))
    lora = init_lora(tiny_config, spec, [3, 4])
    alone = init_lora(tiny_config, LoraSpec(1, 64, spec.targets), [4])
    leaves, others = (dict(nnx.to_flat_state(x)) for x in (lora, alone))
    assert len(leaves) == 4
    for path, leaf in leaves.items():
        value = np.asarray(leaf[...])
        np.testing.assert_array_equal(value[1], others[path][...][0])
        if path[-1] == "lora_b":
            assert not value.any()
            continue
        bound = value.shape[-2] ** -0.5
        assert np.abs(value).max() <= bound
        assert np.abs(value).max() > 0.99 * bound
        assert np.std(value) == pytest.approx(bound / np.sqrt(3), rel=0.05)
        assert not np.array_equal(value[0], value[1])


@pytest.fixture
def linear():
    """A linear without a base weight, over two adapters of rank 3."""
    spec = LoraSpec(2, 3, ("q_proj",), dropout=0.3)
    made = LoraLinear(
        "q_proj",
        1,
        (40, 24),
        ("embed", "heads"),
        spec,
        bias=False,
        dtype=jnp.float32,
        rngs=nnx.Rngs(params=0),
    )
    graph, params = nnx.split(made)
    rng = np.random.default_rng(0)
    # One layer of the stack, as the model's scan takes it.
    one = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape[1:]), jnp.float32), params)
    one["kernel"][...] = jnp.zeros((40, 24))
    return nnx.merge(graph, one)


def test_dropout_drops_inputs_of_a_and_is_right_on_average(linear):
    x = np.random.default_rng(1).normal(size=(2, 2, 5, 40)).astype(np.float32)
    ids, scale = jnp.array([1, 0]), jnp.array([0.5, 2.0])

    def apply(keys):
        return linear(x, Active(ids, scale, keys))

    plain = apply(None)
    a, b = np.asarray(linear.lora_a[...]), np.asarray(linear.lora_b[...])
    for group, number in enumerate(ids):
        expected = scale[number] * x[group] @ a[number] @ b[number]
        np.testing.assert_allclose(plain[group], expected, rtol=2e-5, atol=2e-5)
    draws = jax.vmap(lambda i: apply(jax.random.split(jax.random.key(i), (2, 2))))(jnp.arange(2000))
    error = np.linalg.norm(draws.mean(axis=0) - plain) / np.linalg.norm(plain)
    one = np.linalg.norm(draws[0] - plain) / np.linalg.norm(plain)
    # One draw errs by about sqrt(p / (1 - p)) of the input's norm.
    assert 0.3 < one < 1.2
    assert error < 2 * one / np.sqrt(2000)


def test_what_is_dropped_is_an_adapters_own_and_that_of_its_projection(linear):
    x = jnp.ones((2, 2, 5, 40))
    keys = jax.random.split(jax.random.key(0), (2, 2))
    both = linear._dropped(x, keys)
    np.testing.assert_array_equal(linear._dropped(x[1:], keys[1:]), both[1:])
    assert set(np.unique(both)) == {0, np.float32(1 / 0.7)}
    # Also each row's own, so that it does not matter which rows share a batch.
    np.testing.assert_array_equal(linear._dropped(x[:, 1:], keys[:, 1:]), both[:, 1:])
    assert not np.array_equal(both[0], both[1])
    assert not np.array_equal(both[:, 0], both[:, 1])
    linear.salt += 1
    assert not np.array_equal(linear._dropped(x, keys), both)
