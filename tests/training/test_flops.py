"""Model FLOPs are what the compiled gradient takes, and what one counts by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from langmerge_jax.models.config import LlamaConfig
from langmerge_jax.models.llama import Llama
from langmerge_jax.models.lora import Active, LoraSpec
from langmerge_jax.models.stacking import split_lora
from langmerge_jax.training.flops import peak_flops, step_flops
from langmerge_jax.training.step import token_losses
from tests.training.test_train_step import TARGETS


def config_of(layers, width, heads, kv_heads, head_dim, intermediate, vocab):
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_scaling=None,
        tie_word_embeddings=False,
        max_position_embeddings=8192,
    )


def compiled_flops(config, spec, groups, rows, length, targets):
    """What XLA counts of the gradient of a batch of full rows, without rematerialisation."""
    graph, lora = split_lora(config, spec, jnp.float32)
    base = nnx.state(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(params=0))))

    def whole(dtype, *shape):
        return jax.ShapeDtypeStruct((groups, *shape), dtype)

    batch = {
        "tokens": whole(jnp.int32, rows, length),
        "target_index": whole(jnp.int32, rows, targets),
        "target": whole(jnp.int32, rows, targets),
        "weight": whole(jnp.float32, rows, targets),
    }
    active = Active(whole(jnp.int32), jax.ShapeDtypeStruct((spec.n,), jnp.float32))

    def loss(lora, base, batch, active):
        model = nnx.merge(graph, lora, base)
        return token_losses(model, model(batch["tokens"], active), batch).sum()

    compiled = jax.jit(jax.grad(loss)).lower(lora, base, batch, active).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("layers", "width", "rank", "targets", "length", "predicted"),
    [
        (1, 256, 8, TARGETS, 128, 4),
        (1, 512, 64, TARGETS, 64, 64),
        (1, 256, 8, ("q_proj", "v_proj"), 256, 4),
        (1, 256, 8, ("down_proj",), 128, 4),
        (3, 256, 8, TARGETS, 128, 4),
        (3, 256, 8, ("o_proj",), 64, 4),
    ],
)
def test_flops_are_what_xla_counts(layers, width, rank, targets, length, predicted, monkeypatch):
    # Of a loop XLA counts one pass.
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    config, spec = config_of(layers, width, 4, 2, 64, 2 * width, 1000), LoraSpec(2, rank, targets)
    found = step_flops(config, spec, lengths=[length] * 4, targets=4 * predicted)
    # The plain formula computes the masked half of the scores too.
    square = found.attention * 2 * length / (length + 1)
    expected = found.total - found.attention + square
    # XLA counts the elementwise operations too.
    measured = compiled_flops(config, spec, 2, 2, length, predicted)
    assert expected <= measured <= 1.025 * expected


def test_flops_of_llama_8b_by_hand():
    config = config_of(32, 4096, 32, 8, 128, 14336, 128_256)
    found = step_flops(config, LoraSpec(1, 64, TARGETS), lengths=[3, 1000], targets=5)
    # q and o, k and v, and the three of the feed-forward.
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert layer == 218_103_808
    # Twice forward, twice backward, but for what the first q, k and v read.
    a_token = 4 * 32 * layer - 2 * (4096 * 4096 + 2 * 4096 * 1024)
    assert a_token == 27_866_955_776
    assert found.weights == 1003 * a_token
    # 167,772,160 parameters of the adapter, the same again.
    assert found.lora == 1003 * (6 * 167_772_160 - 2 * 3 * 4096 * 64)
    # A pair of positions: two products forward and four backward, in 32 heads of 128.
    assert found.attention == (6 + 500_500) * 32 * 6 * 2 * 32 * 128
    assert found.head == 5 * 4 * 4096 * 128_256
    assert found.total == sum((found.weights, found.lora, found.attention, found.head))


def test_a_peak_is_known_of_a_device_in_16_bits():
    assert peak_flops("NVIDIA H100 80GB HBM3", jnp.bfloat16) == 989e12
    assert peak_flops("TPU v5 lite", jnp.dtype("bfloat16")) == 197e12
    assert peak_flops("NVIDIA H100 80GB HBM3", jnp.float32) is None
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", jnp.bfloat16) is None
    assert peak_flops("cpu", jnp.bfloat16) is None
