"""Causal grouped-query attention: one function, and the ways to compute it.

Arrays are q `[g, b, s, h, c]`, k and v `[g, b, s, k, c]`, k dividing h: query head j reads key and
value head j // (h / k). Softmax is computed in at least float32.
"""

import dataclasses
import logging
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from langmerge_jax.errors import InputError
from langmerge_jax.parallel.mesh import Rules

logger = logging.getLogger(__name__)

BACKENDS = ("xla", "blockwise", "cudnn", "splash")

# Scores that `blockwise` holds at once; 256 MB in float32.
_SCORES = 2**26
# What splash attention's blocks are multiples of.
_LANES = 128


class Past(NamedTuple):
    """Keys, rotated, and values of positions computed before; of all layers with a leading l.

    So laid out, what later positions need of them are plain matrix products over contiguous rows.

    Attributes:
      k: [g, b, k, c, t].
      v: [g, b, k, t, c].
    """

    k: jax.Array
    v: jax.Array

    @staticmethod
    def of(k: jax.Array, v: jax.Array) -> "Past":
        """Lays out k and v [g, b, t, k, c]."""
        return Past(k.transpose(0, 1, 3, 4, 2), v.swapaxes(2, 3))


@dataclasses.dataclass(frozen=True)
class Attention:
    """How attention is computed.

    Attributes:
      backend: `xla` holds all scores, [g, b, h, s, s]; `blockwise` those of some queries at a
        time, and computes them again in the backward pass; `cudnn` and `splash` are the fused
        kernels of NVIDIA GPUs and of TPUs.
      mesh: the devices, which `splash` has to be spread over by hand.
    """

    backend: str = "xla"
    mesh: Mesh | None = None

    @property
    def knows_segments(self) -> bool:
        """Whether the examples of a packed row can be kept apart."""
        return self.backend != "cudnn"

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None = None
    ) -> jax.Array:
        """Returns what each position reads from itself and those before it, like q.

        Args:
          q, k, v: see above.
          segments: int32 [g, b, s] or None. With it, positions see only their own segment.

        Raises:
          ValueError: for segments where the backend knows none.
        """
        if self.backend == "blockwise":
            return blockwise(q, k, v, segments)
        if self.backend == "splash":
            return splash(q, k, v, segments, mesh=self.mesh)
        if segments is not None and not self.knows_segments:
            raise ValueError("cuDNN's attention has no segments: it would see across them")
        if self.backend == "cudnn":
            return _cudnn(q, k, v)
        return _read(q, k, v, _visible(0, q.shape[2], k.shape[2], segments, segments))


def choose(
    name: str, *, platform: str, dtype: jnp.dtype, head_dim: int, mesh: Mesh | None = None
) -> Attention:
    """Picks the backend, and says so in the log.

    Args:
      name: one of `BACKENDS`, or `auto`: cuDNN on NVIDIA GPUs where it can, splash on TPUs,
        otherwise blockwise.
      platform: `cpu`, `gpu` or `tpu`.
      dtype: of the computation; cuDNN takes 16 bits.
      head_dim: c; cuDNN takes multiples of 8 up to 128.

    Raises:
      InputError: for an unknown name, and for a backend that cannot run here.
    """
    fits_cudnn = jnp.dtype(dtype).itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128
    backend = name
    if name == "auto":
        fused = {"gpu": "cudnn" if fits_cudnn else "blockwise", "tpu": "splash"}
        backend = fused.get(platform, "blockwise")
    elif name not in BACKENDS:
        raise InputError(f"attention={name!r}: choose auto, {', '.join(BACKENDS)}")
    elif name == "cudnn" and (platform != "gpu" or not fits_cudnn):
        raise InputError(
            f"attention='cudnn' needs an NVIDIA GPU, a dtype of 16 bits and heads of a multiple of "
            f"8 up to 128; here are {platform}, {jnp.dtype(dtype)} and {head_dim}; take 'auto'"
        )
    elif name == "splash" and platform not in ("tpu", "cpu"):
        raise InputError(f"attention='splash' needs a TPU, here is {platform}; take 'auto'")
    logger.info("attention: %s (%s, %s)", backend, platform, jnp.dtype(dtype))
    return Attention(backend, mesh)


def _visible(start, queries: int, keys: int, mine, theirs) -> jax.Array:
    """Whether query start + i sees key j: [s, t], or with segments [g, b, s, t]."""
    order = (start + jnp.arange(queries))[:, None] >= jnp.arange(keys)
    if mine is None:
        return order
    return order & (mine[..., :, None] == theirs[..., None, :])


def _read(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention where `visible` ([s, t] or [g, b, s, t]) is true."""
    g, b, s, h, c = q.shape
    kv = k.shape[3]
    q = q.reshape(g, b, s, kv, h // kv, c)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("gbskqc,gbtkc->gbkqst", q, k, preferred_element_type=wide) * c**-0.5
    if visible.ndim == 4:
        visible = visible[:, :, None, None]
    # Not minus infinity: a position of padding that sees nothing would make gradients NaN.
    scores = jnp.where(visible, scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("gbkqst,gbtkc->gbskqc", weights, v).reshape(g, b, s, h, c)


def attend_after(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    past: Past,
    seen: jax.Array,
    visible: jax.Array,
) -> jax.Array:
    """Attention of a few new positions to many earlier ones and among themselves.

    Args:
      q, k, v: of the new positions, s of them.
      past: t earlier positions.
      seen: bool [g, b, t], the earlier positions that count.
      visible: bool [s, s], which new positions see which.
    """
    g, b, s, h, c = q.shape
    kv = k.shape[3]
    # By the key head that they read, [g, b, k, h / k * s, c].
    rows = q.reshape(g, b, s, kv, h // kv, c).transpose(0, 1, 3, 4, 2, 5)
    rows = rows.reshape(g, b, kv, h // kv * s, c)
    new = Past.of(k, v)
    scores = (
        _products(rows, past.k, seen[:, :, None, None]),
        _products(rows, new.k, jnp.tile(visible, (h // kv, 1))),
    )
    # A softmax over both, without laying them side by side.
    most = jnp.maximum(*(x.max(axis=-1, keepdims=True) for x in scores))
    weights = [jnp.exp(x - most) for x in scores]
    total = sum(x.sum(axis=-1, keepdims=True) for x in weights)
    out = sum(
        jnp.einsum("gbkqt,gbktc->gbkqc", (x / total).astype(v.dtype), y)
        for x, y in zip(weights, (past.v, new.v), strict=True)
    )
    return out.reshape(g, b, kv, h // kv, s, c).transpose(0, 1, 4, 2, 3, 5).reshape(q.shape)


def _products(rows: jax.Array, k: jax.Array, visible: jax.Array) -> jax.Array:
    """Scores of queries by key head, [g, b, k, q, t]."""
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    scores = jnp.einsum("gbkqc,gbkct->gbkqt", rows, k, preferred_element_type=wide)
    return jnp.where(visible, scores * rows.shape[-1] ** -0.5, jnp.finfo(wide).min)


def blockwise(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None = None,
    *,
    most: int = _SCORES,
) -> jax.Array:
    """Attention for a block of queries at a time, so that memory grows with s and not with s².

    The queries go in up to four spans, each over the keys up to its own end: less than the causal
    half that is never seen is computed in vain.

    Args:
      most: scores that may exist at once.
    """
    g, b, s, h, _ = q.shape
    block = 2 ** int(math.log2(max(16, most // (g * b * h * s))))
    if block >= s:
        return _read(q, k, v, _visible(0, s, s, segments, segments))
    count = -(-s // block)

    def blocks(x: jax.Array) -> jax.Array:  # [g, b, s, ...] to [count, g, b, block, ...].
        padding = ((0, 0), (0, 0), (0, count * block - s), *((0, 0),) * (x.ndim - 3))
        x = jnp.pad(x, padding).reshape(*x.shape[:2], count, block, *x.shape[3:])
        return jnp.moveaxis(x, 2, 0)

    starts = jnp.arange(count) * block
    of_queries = (starts, blocks(q), None if segments is None else blocks(segments))
    step = -(-count // 4)

    @jax.checkpoint
    def read(some, k, v, theirs):
        start, q, mine = some
        return _read(q, k, v, _visible(start, block, k.shape[2], mine, theirs))

    def span(first: int) -> jax.Array:
        keys = min(s, (first + step) * block)
        theirs = None if segments is None else segments[:, :, :keys]
        some = jax.tree.map(lambda x: x[first : first + step], of_queries)
        early_k, early_v = k[:, :, :keys], v[:, :, :keys]
        return jax.lax.map(lambda one: read(one, early_k, early_v, theirs), some)

    out = jnp.moveaxis(jnp.concatenate([span(first) for first in range(0, count, step)]), 0, 2)
    return out.reshape(g, b, count * block, *out.shape[4:])[:, :, :s]


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    rows = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    out = jax.nn.dot_product_attention(*rows, is_causal=True, implementation="cudnn")
    return out.reshape(q.shape)


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None = None,
    *,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Attention by the TPU's splash kernel; on a CPU it is interpreted, for tests.

    Rows and heads stay where the mesh has them. Lengths are padded to a multiple of 128.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention

    s = q.shape[2]
    platform = mesh.devices.flat[0].platform if mesh else jax.default_backend()

    def local(q, k, v, segments):
        g, b, _, h, c = q.shape
        padding = ((0, 0), (0, -s % _LANES), (0, 0), (0, 0))
        q, k, v = (
            jnp.pad(x.reshape(g * b, s, -1, c), padding).swapaxes(1, 2)
            for x in (q * jnp.asarray(c**-0.5, q.dtype), k, v)
        )
        length = q.shape[2]
        mask = splash_attention.CausalMask((length, length))
        kernel = splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask([mask] * h),
            head_shards=1,
            q_seq_shards=1,
            interpret=platform == "cpu",
        )
        ids = None
        if segments is not None:
            flat = jnp.pad(segments.reshape(g * b, s), ((0, 0), (0, -s % _LANES)))
            ids = splash_attention.SegmentIds(flat, flat)
        out = jax.vmap(kernel)(q, k, v, ids)
        return out.swapaxes(1, 2)[:, :s].reshape(g, b, s, h, c)

    if mesh is None:
        return local(q, k, v, segments)
    # Both kinds of heads in equal parts, or neither: a part must hold the keys of its queries.
    rules, axes = Rules(), ("groups", "rows", None, "heads", None)
    specs = [rules.spec(axes, x.shape, mesh) for x in (q, k)]
    spec = specs[0] if specs[0] == specs[1] else rules.spec((*axes[:3], None, None), q.shape, mesh)
    of_segments = None if segments is None else rules.spec(axes[:3], segments.shape, mesh)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(spec, spec, spec, of_segments),
        out_specs=spec,
        check_vma=False,
    )(q, k, v, segments)
