"""Every way to compute attention gives what float64 numpy gives, and none needs s x s memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from langmerge_jax.errors import InputError
from langmerge_jax.models import attention
from langmerge_jax.models.attention import Attention, Past, attend_after, blockwise, choose, splash


def reference(q, k, v, visible):
    """Softmax attention in float64, one head at a time; visible [g, b, s, t]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.empty(q.shape)
    for g, b, h in np.ndindex(q.shape[0], q.shape[1], q.shape[3]):
        kv = h * k.shape[3] // q.shape[3]
        scores = q[g, b, :, h] @ k[g, b, :, kv].T / np.sqrt(q.shape[-1])
        scores = np.where(visible[g, b], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[g, b, :, h] = weights / weights.sum(axis=-1, keepdims=True) @ v[g, b, :, kv]
    return out


def draw(s, *, h=4, kv=2, c=16, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((2, 3, s, h, c), (2, 3, s, kv, c), (2, 3, s, kv, c))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def packed(s):
    """Segments of uneven length, other ones in each row."""
    rng = np.random.default_rng(1)
    starts = rng.random((2, 3, s)) < 0.1
    return np.cumsum(starts, axis=-1).astype(np.int32)


def causal(s, segments=None):
    visible = np.broadcast_to(np.tri(s, dtype=bool), (2, 3, s, s))
    if segments is not None:
        visible = visible & (segments[..., :, None] == segments[..., None, :])
    return visible


WAYS = {
    "xla": Attention("xla"),
    "blockwise": Attention("blockwise"),
    # So few scores at once that there are 5 blocks, the last one short, in 3 spans.
    "blockwise, many": functools.partial(blockwise, most=2 * 3 * 4 * 70 * 16),
    "splash, interpreted": splash,
}


@pytest.mark.parametrize("with_segments", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_the_reference(way, with_segments):
    q, k, v = draw(70)
    segments = packed(70) if with_segments else None
    found = jax.jit(WAYS[way])(q, k, v, segments)
    expected = reference(q, k, v, causal(70, segments))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("with_segments", [False, True])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "xla"])
def test_gradients_are_those_of_the_plain_way(way, with_segments):
    q, k, v = draw(70)
    segments = packed(70) if with_segments else None
    weigh = np.random.default_rng(2).normal(size=q.shape).astype(np.float32)

    def gradients(attend):
        loss = lambda q, k, v: (attend(q, k, v, segments) * weigh).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    for found, expected in zip(gradients(WAYS[way]), gradients(WAYS["xla"]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


def test_new_positions_after_many_see_what_they_would_see_in_one_sequence():
    q, k, v = draw(40)
    lengths = np.array([[30, 17, 5], [1, 29, 30]])
    seen = np.arange(30) < lengths[..., None]
    # Two branches, of 4 and of 6 positions.
    owner = np.repeat([0, 1], [4, 6])
    visible = np.tri(10, dtype=bool) & (owner[:, None] == owner)
    late = [x[:, :, 30:] for x in (q, k, v)]
    past = Past.of(*(x[:, :, :30] for x in (k, v)))
    found = jax.jit(attend_after)(*late, past, seen, visible)
    whole = np.zeros((2, 3, 10, 40), bool)
    whole[..., :30], whole[..., 30:] = seen[:, :, None], visible
    expected = reference(late[0], k, v, whole)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_memory_grows_with_the_length_and_not_with_its_square():
    """Forward and backward at 8,192 tokens, 8 heads: all scores would be 2 GB in float32."""

    def loss(q, k, v):
        return Attention("blockwise")(q, k, v).astype(jnp.float32).sum()

    def bytes_at(s):
        shape = jax.ShapeDtypeStruct((1, 1, s, 8, 64), jnp.bfloat16)
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_at(8192) < 1.1e9
    assert bytes_at(16384) < 1.3 * bytes_at(8192)


def test_the_backend_is_chosen_by_platform_type_and_heads(caplog):
    caplog.set_level("INFO")
    for platform, dtype, head_dim, expected in (
        ("cpu", "bfloat16", 64, "blockwise"),
        ("gpu", "bfloat16", 128, "cudnn"),
        ("gpu", "float32", 128, "blockwise"),
        ("gpu", "bfloat16", 256, "blockwise"),
        ("tpu", "bfloat16", 64, "splash"),
    ):
        found = choose("auto", platform=platform, dtype=dtype, head_dim=head_dim)
        assert found.backend == expected
        assert f"attention: {expected} ({platform}, {dtype})" in caplog.text
    for name in attention.BACKENDS:
        platform = {"cudnn": "gpu", "splash": "tpu"}.get(name, "cpu")
        assert choose(name, platform=platform, dtype="bfloat16", head_dim=64).backend == name


def test_a_backend_that_cannot_run_is_refused():
    for name, platform, dtype, words in (
        ("flash", "cpu", "float32", "attention='flash': choose auto, xla, blockwise, cudnn"),
        ("cudnn", "cpu", "bfloat16", "'cudnn' needs an NVIDIA GPU"),
        ("cudnn", "gpu", "float32", "a dtype of 16 bits"),
        ("splash", "gpu", "bfloat16", "'splash' needs a TPU"),
    ):
        with pytest.raises(InputError, match=words):
            choose(name, platform=platform, dtype=dtype, head_dim=64)
    with pytest.raises(ValueError, match="no segments"):
        Attention("cudnn")(*draw(8), packed(8))
