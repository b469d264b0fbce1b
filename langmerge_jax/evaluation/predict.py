"""Choice scoring: the log-likelihood of each option after each prompt."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from langmerge_jax.data.batching import bucket
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.decoding import pad_prompts
from langmerge_jax.models.llama import Llama, Tail
from langmerge_jax.models.lora import Active, LoraSpec
from langmerge_jax.models.stacking import split_lora
from langmerge_jax.parallel.mesh import Rules, place


class ChoiceScorer:
    """Scores a fixed set of options after many prompts, for any weights of one shape.

    The prompt is computed once: the options stand behind it side by side, each sees the prompt and
    itself.

    Args:
      base: model, tokenizer and devices.
      options: token ids of each option; none is empty.
      batch_size: prompts at a time.
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

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        params: nnx.State | None = None,
        lora: nnx.State | None = None,
        spec: LoraSpec | None = None,
        done: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """Scores every option after every prompt.

        Args:
          prompts: token ids, none empty.
          params: weights in place of the base's, such as a folded merge.
          lora: one adapter (LoRA state with leaves [l, 1, ...]) of shape `spec`, or None.
          done: called with the number of prompts finished.

        Returns:
          float32 [prompts, options], log-likelihoods in nats.
        """
        program = self._program(spec)
        params = self._base.params if params is None else params
        lora = nnx.State({}) if lora is None else lora
        order = np.argsort([len(p) for p in prompts], kind="stable")
        scores = np.zeros((len(prompts), len(self._options.index)), np.float32)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            length = bucket(len(prompts[rows[-1]]), self._buckets)
            numbers = np.full((1, self._batch_size), -1)
            numbers[0, : len(rows)] = rows
            tokens, lengths = pad_prompts(prompts, numbers, length)
            batch = place({"tokens": tokens, "lengths": lengths}, self._base.mesh, Rules())
            result = program(params, lora, **batch)
            scores[rows] = np.asarray(result)[0, : len(rows)]
            done(len(rows))
        return scores


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
        active = Active(jnp.zeros(g, jnp.int32), jnp.ones(1))
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
