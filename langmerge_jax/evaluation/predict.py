"""Choice scoring: the log-likelihood of each option after each prompt."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from langmerge_jax.data.batching import bucket
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.lora import LoraSpec
from langmerge_jax.models.stacking import split_lora
from langmerge_jax.parallel.mesh import Rules
from langmerge_jax.training.loop import place


class ChoiceScorer:
    """Scores a fixed set of options after many prompts, for any weights of one shape.

    The prompt is computed once: the options stand behind it side by side, as branches that see
    the prompt and themselves.

    Args:
      base: model, tokenizer and devices.
      options: token ids of each option; none is empty.
      batch_size: prompts at a time.
      buckets: sequence lengths prompts and options together are padded to.
    """

    def __init__(
        self, base: Base, options: Sequence[Sequence[int]], batch_size: int, buckets: Sequence[int]
    ):
        self._base, self._options = base, options
        self._batch_size, self._buckets = batch_size, buckets
        self._programs: dict[LoraSpec | None, Callable] = {}

    def _program(self, spec: LoraSpec | None) -> Callable:
        if spec not in self._programs:
            graph, _ = split_lora(self._base.config, spec, self._base.dtype)
            n = spec.n if spec else 1

            @jax.jit
            def program(params, lora, batch):
                model = nnx.merge(graph, lora, params)
                hidden = model(
                    batch["tokens"],
                    jnp.ones(n),
                    jnp.zeros(1, jnp.int32),
                    batch["positions"],
                    batch.get("branch"),
                )
                g, b, o, t = batch["index"].shape
                index = batch["index"].reshape(g, b, o * t, 1)

                logits = model.logits(jnp.take_along_axis(hidden, index, axis=2))
                likelihood = jax.nn.log_softmax(logits).reshape(g, b, o, t, -1)
                chosen = jnp.take_along_axis(likelihood, batch["target"][..., None], axis=-1)
                return (chosen[..., 0] * batch["weight"]).sum(-1)

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
          prompts: token ids.
          params: weights in place of the base's, such as a folded merge.
          lora: one adapter (LoRA state with leaves [l, 1, ...]) of shape `spec`, or None.
          done: called with the number of prompts finished.

        Returns:
          float32 [prompts, options], log-likelihoods in nats.
        """
        program = self._program(spec)
        params = self._base.params if params is None else params
        lora = nnx.State({}) if lora is None else lora
        extra = sum(len(option) - 1 for option in self._options)
        order = np.argsort([len(p) for p in prompts], kind="stable")
        scores = np.zeros((len(prompts), len(self._options)), np.float32)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            length = bucket(len(prompts[rows[-1]]) + extra, self._buckets)
            batch = self._lay_out([prompts[i] for i in rows], length)
            result = program(params, lora, place(batch, self._base.mesh, Rules()))
            scores[rows] = np.asarray(result)[0, : len(rows)]
            done(len(rows))
        return scores

    def _lay_out(self, prompts: Sequence[Sequence[int]], length: int) -> dict[str, np.ndarray]:
        rows, count = self._batch_size, len(self._options)
        longest = max(map(len, self._options))
        tokens = np.zeros((1, rows, length), np.int32)
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy()
        branch = np.full((1, rows, length), -1, np.int32)
        index, target = np.zeros((2, 1, rows, count, longest), np.int32)
        weight = np.zeros((1, rows, count, longest), np.float32)
        for row, prompt in enumerate(prompts):
            tokens[0, row, : len(prompt)] = prompt
            branch[0, row, : len(prompt)] = 0
            place_ = len(prompt)
            for o, option in enumerate(self._options):
                size = len(option) - 1
                span = slice(place_, place_ + size)
                tokens[0, row, span] = option[:-1]
                branch[0, row, span] = o + 1
                positions[0, row, span] = len(prompt) + np.arange(size)
                index[0, row, o, : size + 1] = [len(prompt) - 1, *range(place_, place_ + size)]
                target[0, row, o, : size + 1] = option
                weight[0, row, o, : size + 1] = 1
                place_ += size
        batch = {
            "tokens": tokens,
            "positions": positions,
            "index": index,
            "target": target,
            "weight": weight,
        }
        # With one-token options the row is a plain causal sequence.
        return batch | {"branch": branch} if longest > 1 else batch
