"""Whether the device computes what float64 on the host does, before anything is timed.

The references are NumPy's, written out from the formulas. What is given to both is what bfloat16
holds, so that only what is computed with it differs; errors are norms of differences, as shares of
the norm.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.gpu_shape import DTYPE, Shape
from benchmarks.measuring import Section
from benchmarks.merge_inputs import random_adapters
from benchmarks.random_base import random_params
from langmerge_jax.adapters import Adapter
from langmerge_jax.merging import merge
from langmerge_jax.models.attention import Attention, blockwise
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.lora import Active, LoraLinear, LoraParam, LoraSpec
from langmerge_jax.models.stacking import split_lora
from langmerge_jax.training.step import token_losses

# bfloat16 rounds to 2^-9, and a result has been rounded several times.
_SIXTEEN_BITS = 2.0**-6
# A merge is float32; of a million entries a few lie so near a threshold that they fall beyond it.
_MERGE = 1e-3
# Entries of the vocabulary that the check of the loss takes, at most.
_VOCABULARY = 16_032


def check(section: Section, shape: Shape, base: Base) -> None:
    """Notes the errors of attention, loss, LoRA's linear and KnOTS, of each that does not fail."""
    section.attempt("attention", lambda: attention(section, shape, base))
    section.attempt("loss", lambda: cross_entropy(section, base))
    section.attempt("LoRA", lambda: lora_linear(section, shape))
    section.attempt("KnOTS", lambda: knots(section, shape, base))


def apart(found: jax.Array | np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference as a share of the norm; infinite where a value is none."""
    difference = np.linalg.norm(np.asarray(found, np.float64) - expected)
    return float(difference / np.linalg.norm(expected)) if np.isfinite(difference) else np.inf


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal numbers that bfloat16 holds, as float64."""
    return rng.standard_normal(shape).astype(DTYPE).astype(np.float64)


def attention(section: Section, shape: Shape, base: Base) -> None:
    """Every way to compute it that the device has, forward and backward."""
    config, rng = shape.config, np.random.default_rng(0)
    h, kv, c, s = (
        *(config.num_attention_heads, config.num_key_value_heads),
        *(config.head_dim, shape.positions),
    )
    q, k, v, weigh = (_normal(rng, 1, 2, s, heads, c) for heads in (h, kv, kv, h))
    expected = attention_reference(q, k, v, weigh)
    ways = {
        "xla": Attention("xla"),
        # Four blocks of queries.
        "blockwise": functools.partial(blockwise, most=2 * h * s * s // 4),
    }
    ways.setdefault(base.attention.backend, base.attention)

    def gradients(attend, q, k, v, weigh):
        out, back = jax.vjp(attend, q, k, v)
        return out, *back(weigh)

    given = [jnp.asarray(x, DTYPE) for x in (q, k, v, weigh)]

    def compare(name: str) -> None:
        found = jax.jit(functools.partial(gradients, ways[name]))(*given)
        errors = [apart(x, y) for x, y in zip(found, expected, strict=True)]
        section.note(f"{name} attention", errors[0], most=_SIXTEEN_BITS)
        section.note(f"{name} gradients", max(errors[1:]), most=_SIXTEEN_BITS)

    for name in ways:
        section.attempt(f"{name} attention", functools.partial(compare, name))


def attention_reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, weigh: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Causal attention [g, b, s, h, c], and the gradients of its sum weighed by `weigh`."""
    shared = q.shape[3] // k.shape[3]
    # [g, b, h, s, c], each query head beside the keys that it reads.
    q, weigh = (x.swapaxes(2, 3) for x in (q, weigh))
    k, v = (np.repeat(x.swapaxes(2, 3), shared, axis=2) for x in (k, v))
    scores = q @ k.swapaxes(3, 4) / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    of_weights = weigh @ v.swapaxes(3, 4)
    of_scores = weights * (of_weights - (of_weights * weights).sum(axis=-1, keepdims=True))
    of_scores /= np.sqrt(q.shape[-1])

    def of_keys(x: np.ndarray) -> np.ndarray:
        g, b, h, s, c = x.shape
        return x.reshape(g, b, h // shared, shared, s, c).sum(axis=3).swapaxes(2, 3)

    return (
        (weights @ v).swapaxes(2, 3),
        (of_scores @ k).swapaxes(2, 3),
        of_keys(of_scores.swapaxes(3, 4) @ q),
        of_keys(weights.swapaxes(3, 4) @ weigh),
    )


def cross_entropy(section: Section, base: Base) -> None:
    """The loss of training, some positions after the other, forward and backward."""
    # Head and embeddings, which are one, and as little of a layer as there can be.
    config = dataclasses.replace(
        base.config,
        vocab_size=min(_VOCABULARY, base.config.vocab_size),
        tie_word_embeddings=True,
        num_hidden_layers=1,
        intermediate_size=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    graph, _ = split_lora(config, None, DTYPE)
    params, rng = random_params(config, base.mesh, DTYPE), np.random.default_rng(0)
    g, b, s, t, vocab = 2, 2, 48, 40, config.vocab_size
    hidden = _normal(rng, g, b, s, config.hidden_size)
    batch = {
        "target_index": np.sort(rng.permuted(np.tile(np.arange(s), (g, b, 1)), axis=2)[..., :t]),
        "target": rng.integers(0, vocab, (g, b, t)),
        "weight": (rng.random((g, b, t)) < 0.8).astype(np.float32),
    }

    @jax.jit
    def found(params, hidden, batch):
        model = nnx.merge(graph, nnx.State({}), params)

        def loss(hidden):
            # So few logits at once that the last part is a short one.
            losses = token_losses(model, hidden, batch, most=g * b * vocab * 7)
            return losses.sum(), losses

        gradient, losses = jax.grad(loss, has_aux=True)(hidden)
        return losses, gradient

    losses, gradient = found(params, jnp.asarray(hidden, DTYPE), batch)
    head = np.asarray(params["embed_tokens"][...], np.float64)
    expected = loss_reference(hidden, head, batch)
    section.note("loss in parts", apart(losses, expected[0]), most=_SIXTEEN_BITS)
    section.note("loss gradient", apart(gradient, expected[1]), most=_SIXTEEN_BITS)


def loss_reference(
    hidden: np.ndarray, head: np.ndarray, batch: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The weighed losses of targets, and the gradient of their sum by the hidden states."""
    groups, rows, targets = np.indices(batch["target"].shape)
    positions = (groups, rows, batch["target_index"])
    logits = hidden[positions] @ head.T
    likelihood = np.exp(logits - logits.max(axis=-1, keepdims=True))
    likelihood /= likelihood.sum(axis=-1, keepdims=True)
    chosen = (groups, rows, targets, batch["target"])
    losses = -batch["weight"] * np.log(likelihood[chosen])
    likelihood[chosen] -= 1
    gradient = np.zeros(hidden.shape)
    np.add.at(gradient, positions, batch["weight"][..., None] * (likelihood @ head))
    return losses, gradient


def lora_linear(section: Section, shape: Shape) -> None:
    """A projection with the adapters that its groups name, and the gradients of their factors."""
    i, o = shape.config.projections()["gate_proj"]
    spec = LoraSpec(3, shape.rank, ("gate_proj",))

    def make() -> LoraLinear:
        rngs = nnx.Rngs(params=0)
        return LoraLinear(
            *("gate_proj", 1, (i, o), ("embed", "mlp"), spec), bias=False, dtype=DTYPE, rngs=rngs
        )

    graph, lora, rest = nnx.split(nnx.eval_shape(make), LoraParam, ...)
    rng = np.random.default_rng(0)
    kernel = _normal(rng, i, o)
    a, b = _normal(rng, 3, i, spec.rank), _normal(rng, 3, spec.rank, o)
    x, weigh = _normal(rng, 2, 2, 32, i), _normal(rng, 2, 2, 32, o)
    ids, scale = np.array([2, 0]), np.array([0.5, 1.0, 2.0])

    def filled(state: nnx.State, values: dict[str, np.ndarray], dtype) -> nnx.State:
        # Without the axis of layers, as the scan hands them on.
        return nnx.from_flat_state(
            [
                (path, leaf.replace(jnp.asarray(values[path[-1]], dtype)))
                for path, leaf in nnx.to_flat_state(state)
            ]
        )

    lora = filled(lora, {"lora_a": a, "lora_b": b}, jnp.float32)
    rest = filled(rest, {"kernel": kernel}, DTYPE)
    active = Active(jnp.asarray(ids, jnp.int32), jnp.asarray(scale, jnp.float32))

    @jax.jit
    def found(lora, rest, x, weigh):
        out, back = jax.vjp(lambda lora: nnx.merge(graph, lora, rest)(x, active), lora)
        return out, back(weigh)[0]

    given = [jnp.asarray(value, DTYPE) for value in (x, weigh)]
    out, gradient = found(lora, rest, *given)
    expected, of_a, of_b = np.zeros(weigh.shape), np.zeros(a.shape), np.zeros(b.shape)
    for group, n in enumerate(ids):
        rows, back = x[group].reshape(-1, i), weigh[group].reshape(-1, o)
        low = rows @ a[n]
        expected[group] = (rows @ kernel + scale[n] * low @ b[n]).reshape(weigh[group].shape)
        of_a[n] = scale[n] * rows.T @ (back @ b[n].T)
        of_b[n] = scale[n] * low.T @ back
    section.note("LoRA linear", apart(out, expected), most=_SIXTEEN_BITS)
    errors = [apart(gradient[name][...], y) for name, y in (("lora_a", of_a), ("lora_b", of_b))]
    section.note("LoRA gradients", max(errors), most=_SIXTEEN_BITS)


def knots(section: Section, shape: Shape, base: Base) -> None:
    """TIES-KnOTS of one projection."""
    adapters, densities = random_adapters(shape.checked, 5, shape.rank), (1.0, 0.5)
    expected = knots_reference(adapters, densities)
    for density in densities:
        recipe = f"ties_knots@{density:g}"
        found = merge(adapters, recipe, devices=[base.mesh.devices.flat[0]])
        error = apart(found.modules["proj"].delta(), expected[density])
        section.note(recipe, error, most=_MERGE)


def knots_reference(
    adapters: dict[str, Adapter], densities: Sequence[float]
) -> dict[float, np.ndarray]:
    """The merged deltas by the SVD of all task vectors side by side, as KnOTS' paper has it."""
    factors = [adapter.modules["proj"] for adapter in adapters.values()]
    deltas = [f.scale * f.b.astype(np.float64) @ f.a.astype(np.float64) for f in factors]
    u, s, vh = np.linalg.svd(np.concatenate(deltas, axis=1), full_matrices=False)
    k = sum(f.rank for f in factors)
    tasks = np.stack(np.split(s[:k, None] * vh[:k], len(deltas), axis=1))

    def merged(density: float) -> np.ndarray:
        flat = tasks.reshape(len(tasks), -1).copy()
        for row in flat:
            row[np.argsort(np.abs(row))[: row.size - int(density * row.size)]] = 0
        agrees = np.sign(flat) == np.sign(flat.sum(axis=0))
        mean = (flat * agrees).sum(axis=0) / np.maximum((agrees & (flat != 0)).sum(axis=0), 1)
        return u[:, :k] @ mean.reshape(tasks.shape[1:])

    return {density: merged(density) for density in densities}
