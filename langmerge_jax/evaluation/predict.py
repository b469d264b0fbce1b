"""Answers to many prompts, by several variants in one batch: by choice or by generation."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from langmerge_jax.adapters import Adapter
from langmerge_jax.data.batching import bucket
from langmerge_jax.models.checkpoint import Base, stop_tokens
from langmerge_jax.models.decoding import Decoder, pad_prompts
from langmerge_jax.models.llama import Llama, Tail
from langmerge_jax.models.lora import Active, LoraSpec
from langmerge_jax.models.stacking import spec_of, split_lora, stack
from langmerge_jax.parallel.mesh import Rules, place


@dataclasses.dataclass(frozen=True)
class Weights:
    """What answers: a base, alone or with n adapters of one shape, each of which answers all.

    Attributes:
      n: how many answer.
      spec: shape of the adapters; None without any.
      lora: LoRA state with leaves [l, n, ...].
      params: weights in place of the base's, such as a folded merge.
    """

    n: int
    spec: LoraSpec | None
    lora: nnx.State
    params: nnx.State


def of_base(base: Base, params: nnx.State | None = None) -> Weights:
    """Returns the base, or other weights of its shape, as what answers."""
    return Weights(1, None, nnx.State({}), base.params if params is None else params)


def of_adapters(base: Base, adapters: Sequence[Adapter]) -> Weights:
    """Returns adapters over the base as what answers, padded to one rank."""
    spec = spec_of(adapters)
    named = {str(number): adapter for number, adapter in enumerate(adapters)}
    return Weights(len(adapters), spec, stack(named, base.config, spec, base.dtype), base.params)


def batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[np.ndarray]:
    """Yields the numbers of the prompts of each batch, like lengths together."""
    order = np.argsort([len(p) for p in prompts], kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def rows_at_once(base: Base, batch_size: int, n: int) -> int:
    """Returns how many prompts each of n variants gets in a batch: all rows together are
    `batch_size`, or a few more so that the devices share them evenly."""
    parts = math.prod(base.mesh.shape[axis] for axis in ("data", "fsdp"))
    return -(-max(batch_size // n, 1) // parts) * parts


class Generator:
    """Continues prompts greedily, with the words of each continuation as the answer.

    Args:
      base: model, tokenizer and devices.
      batch_size: rows at a time.
      max_new_tokens: at most so many an answer.
    """

    def __init__(self, base: Base, batch_size: int, max_new_tokens: int):
        self._base, self._batch_size, self._longest = base, batch_size, max_new_tokens
        self._stop = stop_tokens(base)
        self._decoders: dict[int, Decoder] = {}

    def __call__(
        self, prompts: Sequence[Sequence[int]], weights: Weights
    ) -> list[list[dict[str, Any]]]:
        """Answers the prompts of one batch.

        Returns:
          Of each variant, of each prompt {output: text}.
        """
        rows = rows_at_once(self._base, self._batch_size, weights.n)
        if rows not in self._decoders:
            self._decoders[rows] = Decoder(self._base, rows)
        found = self._decoders[rows](
            [*prompts] * weights.n,
            max_new_tokens=self._longest,
            stop=self._stop,
            adapters=np.repeat(np.arange(weights.n), len(prompts)).tolist(),
            spec=weights.spec,
            lora=weights.lora,
            params=weights.params,
        )
        texts = self._base.tokenizer.batch_decode(found, skip_special_tokens=True)
        answers = [{"output": text.strip()} for text in texts]
        count = len(prompts)
        return [answers[i * count : (i + 1) * count] for i in range(weights.n)]


class ChoiceScorer:
    """Scores a fixed set of options after many prompts.

    The prompt is computed once: the options stand behind it side by side, each sees the prompt and
    itself.

    Args:
      base: model, tokenizer and devices.
      options: token ids of each option; none is empty.
      batch_size: rows at a time.
      buckets: sequence lengths prompts are padded to.
    """

    def __init__(
        self, base: Base, options: Sequence[Sequence[int]], batch_size: int, buckets: Sequence[int]
    ):
        self._base, self._options = base, _Options.lay_out(options)
        self._batch_size, self._buckets = batch_size, buckets
        self._programs: dict[LoraSpec | None, Callable] = {}

    def _program(self, spec: LoraSpec | None) -> Callable:
        if spec not in self._programs:
            base, options = self._base, self._options
            graph, _ = split_lora(base.config, spec, base.dtype, attention=base.attention)

            @jax.jit
            def program(params, lora, tokens, lengths):
                model = nnx.merge(graph, lora, params)
                hidden = options.after(model, tokens, lengths)  # [g, b, o, t, d]
                likelihood = jax.nn.log_softmax(model.logits(hidden))
                target = jnp.broadcast_to(options.target, hidden.shape[:-1])
                chosen = jnp.take_along_axis(likelihood, target[..., None], axis=-1)
                return (chosen[..., 0] * options.weight).sum(-1)

            self._programs[spec] = program
        return self._programs[spec]

    def __call__(self, prompts: Sequence[Sequence[int]], weights: Weights) -> np.ndarray:
        """Scores every option after the prompts of one batch.

        Args:
          prompts: token ids, none empty; no more than `rows_at_once`.

        Returns:
          float32 [n, prompts, options], log-likelihoods in nats.
        """
        rows = rows_at_once(self._base, self._batch_size, weights.n)
        numbers = np.full((weights.n, rows), -1)
        numbers[:, : len(prompts)] = np.arange(len(prompts))
        length = bucket(max(map(len, prompts)), self._buckets)
        tokens, lengths = pad_prompts(prompts, numbers, length)
        batch = place({"tokens": tokens, "lengths": lengths}, self._base.mesh, Rules())
        result = self._program(weights.spec)(weights.params, weights.lora, **batch)
        return np.asarray(result)[:, : len(prompts)]


@dataclasses.dataclass(frozen=True)
class _Options:
    """The options laid out behind a prompt, all but the last token of each.

    Attributes:
      tail: int32 [q], their tokens.
      offset: int32 [q], how far each lies behind the prompt in its own option.
      visible: bool [q, q], which see which: those before them in their own option.
      index: int32 [o, t], where each token of an option is predicted: 0 is the prompt's last
        position, i + 1 place i of the tail.
      target, weight: [o, t], the tokens, and 1 where there is one.
    """

    tail: np.ndarray
    offset: np.ndarray
    visible: np.ndarray
    index: np.ndarray
    target: np.ndarray
    weight: np.ndarray

    @staticmethod
    def lay_out(options: Sequence[Sequence[int]]) -> "_Options":
        count, longest = len(options), max(map(len, options))
        index, target = np.zeros((2, count, longest), np.int32)
        weight = np.zeros((count, longest), np.float32)
        tail, offset, owner = [], [], []
        for number, option in enumerate(options):
            inner = len(option) - 1
            index[number, 1 : inner + 1] = np.arange(len(tail), len(tail) + inner) + 1
            target[number, : inner + 1] = option
            weight[number, : inner + 1] = 1
            tail += option[:-1]
            offset += range(inner)
            owner += [number] * inner
        offset, owner = np.array(offset, np.int32), np.array(owner, np.int32)
        visible = (owner[:, None] == owner) & (offset[:, None] >= offset)
        return _Options(np.array(tail, np.int32), offset, visible, index, target, weight)

    def after(self, model: Llama, prompts: jax.Array, lengths: jax.Array) -> jax.Array:
        """Returns the hidden states that predict the options, [g, b, o, t, d].

        Args:
          prompts: int32 [g, b, s]; lengths: int32 [g, b].
        """
        g, b, s = prompts.shape
        active = Active(jnp.arange(g), jnp.ones(g))  # One adapter a group.
        last = (lengths - 1)[..., None]
        if not self.tail.size:  # Options of one token: a plain causal sequence.
            hidden = model(prompts, active)
        else:
            places = jnp.arange(s)
            tokens = [prompts, jnp.broadcast_to(self.tail, (g, b, self.tail.size))]
            positions = [jnp.broadcast_to(places, prompts.shape), lengths[..., None] + self.offset]
            hidden = model(
                jnp.concatenate(tokens, axis=-1),
                active,
                positions=jnp.concatenate(positions, axis=-1),
                tail=Tail(s, places < lengths[..., None], jnp.asarray(self.visible)),
            )
        index = jnp.where(self.index == 0, last[..., None], s + self.index - 1)  # [g, b, o, t]
        wanted = jnp.take_along_axis(hidden, index.reshape(g, b, -1, 1), axis=2)
        return wanted.reshape(*index.shape, -1)
