"""Causal attention."""

import jax
import jax.numpy as jnp


def attend(q: jax.Array, k: jax.Array, v: jax.Array, branch: jax.Array | None = None) -> jax.Array:
    """Causal grouped-query attention; softmax in at least float32.

    Args:
      q: [g, b, s, h, c].
      k: [g, b, s, k, c], k dividing h; query head j reads key/value head j // (h / k).
      v: like k.
      branch: int32 [g, b, s] or None. With it, a position sees an earlier one only if that
        belongs to the shared prompt (0) or to the same branch.

    Returns:
      [g, b, s, h, c].
    """
    g, b, s, h, c = q.shape
    kv = k.shape[3]
    q = q.reshape(g, b, s, kv, h // kv, c)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("gbskqc,gbtkc->gbkqst", q, k, preferred_element_type=wide) * c**-0.5
    visible = jnp.tril(jnp.ones((s, s), bool))
    if branch is not None:
        mine, theirs = branch[..., :, None], branch[..., None, :]
        visible = (visible & ((theirs == 0) | (mine == theirs)))[:, :, None, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1).astype(v.dtype)
    return jnp.einsum("gbkqst,gbtkc->gbskqc", weights, v).reshape(g, b, s, h, c)
