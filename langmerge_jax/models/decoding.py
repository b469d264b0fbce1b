"""Generation: prompts are computed at once, then token after token in one compiled loop.

A cache holds the prompt's keys and values, padded at the end to S places, and behind them T places
for what is generated; rows of any length write their next token at the same place.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.llama import Llama, Past
from langmerge_jax.models.lora import Active, LoraSpec
from langmerge_jax.models.stacking import split_lora
from langmerge_jax.parallel.mesh import Rules

# Lengths of prompts and of what is generated are rounded up to one of these, or to a multiple of
# the last: each that occurs is compiled once.
_LENGTHS, _ROOMS = (32, 128, 512, 2048), (16, 64, 256, 1024)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: 0 takes the most likely.
      top_p: draws among the most likely tokens that together have this probability (nucleus
        sampling, arXiv 1904.09751).
      seed: of the draws. What a prompt gets depends on its place in the list and not on the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature={self.temperature}: give 0 or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}: give a share in (0, 1]")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _State:
    """What the loop changes.

    Attributes:
      past: the cache, [l, g, b, k, S + T, c].
      tokens: int32 [g, b, T], generated.
      made: int32, how many of them.
      done: bool [g, b], rows that met a stop token.
    """

    past: Past
    tokens: jax.Array
    made: jax.Array
    done: jax.Array


class Decoder:
    """Generates after many prompts, with any weights of one shape.

    Args:
      base: model and devices.
      rows: prompts at a time, of each adapter.
    """

    def __init__(self, base: Base, rows: int):
        self._base, self._rows = base, rows
        self._programs: dict[LoraSpec | None, tuple[Callable, Callable]] = {}

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
        sampling: Sampling = Sampling(),
        params: nnx.State | None = None,
        lora: nnx.State | None = None,
        spec: LoraSpec | None = None,
        adapters: Sequence[int] | None = None,
        every: int | None = None,
        on_tokens: Callable[[dict[int, list[int]]], None] = lambda _: None,
    ) -> list[list[int]]:
        """Continues every prompt.

        Args:
          prompts: token ids, none empty.
          max_new_tokens: at most so many a prompt.
          stop: tokens that end a prompt's continuation.
          sampling: how tokens are chosen.
          params: weights in place of the base's, such as a folded merge.
          lora: adapters (LoRA state with leaves [l, n, ...]) of shape `spec`, or None.
          adapters: which of them continues each prompt; all the first by default.
          every: tokens after which `on_tokens` is called; only at the end of a batch by default.
          on_tokens: called with {number of the prompt: its continuation so far}.

        Returns:
          The continuations, without the stop token.

        Raises:
          InputError: if there is nothing to generate, or an empty prompt.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens={max_new_tokens}: give 1 or more")
        if any(not len(prompt) for prompt in prompts):
            raise InputError("an empty prompt: there is nothing to continue")
        if not prompts:
            return []
        prefill, decode = self._program(spec)
        params = self._base.params if params is None else params
        lora = nnx.State({}) if lora is None else lora
        room = _rounded(max_new_tokens, _ROOMS)
        found: list[list[int]] = [[] for _ in prompts]
        for batch in self._batches(prompts, adapters):
            arrays = self._lay_out(prompts, batch, sampling)
            active = Active(arrays.pop("ids"), self._put(np.ones(spec.n if spec else 1)))
            choice = {
                "active": active,
                "lengths": arrays["lengths"],
                "keys": arrays["keys"],
                "stop": self._put(stop, np.int32),
                "temperature": self._put(sampling.temperature),
                "top_p": self._put(sampling.top_p),
            }
            state = prefill(params, lora, arrays["tokens"], arrays["real"], choice, room=room)
            while True:
                made = int(state.made)
                tokens = np.asarray(state.tokens)
                for group, row in np.ndindex(batch.shape):
                    if (number := batch[group, row]) >= 0:
                        found[number] = _until(tokens[group, row, :made].tolist(), stop)
                on_tokens({int(i): found[i] for i in batch.ravel() if i >= 0})
                if made == max_new_tokens or bool(np.asarray(state.done).all()):
                    break
                until = min(max_new_tokens, made + (every or max_new_tokens))
                state = decode(params, lora, state, self._put(until, np.int32), choice)
        return found

    @property
    def compiled(self) -> int:
        """How many programs have been compiled."""
        return sum(f._cache_size() for pair in self._programs.values() for f in pair)

    def _program(self, spec: LoraSpec | None) -> tuple[Callable, Callable]:
        if spec in self._programs:
            return self._programs[spec]
        base = self._base
        graph, _ = split_lora(base.config, spec, base.dtype, attention=base.attention)

        @functools.partial(jax.jit, static_argnames="room")
        def prefill(params, lora, tokens, real, choice, *, room):
            model = nnx.merge(graph, lora, params)
            hidden, past = model.prefill(tokens, choice["active"])
            last = jnp.take_along_axis(hidden, choice["lengths"][..., None, None] - 1, axis=2)
            first = _choose(model, last, jnp.int32(0), choice)
            past = Past(*(jnp.pad(x, ((0, 0),) * 4 + ((0, room), (0, 0))) for x in past))
            made = jnp.zeros((*tokens.shape[:2], room), jnp.int32).at[..., 0].set(first)
            done = ~real | jnp.isin(first, choice["stop"])
            return self._placed(_State(past, made, jnp.int32(1), done))

        @functools.partial(jax.jit, donate_argnums=2)
        def decode(params, lora, state, until, choice):
            model = nnx.merge(graph, lora, params)
            step = functools.partial(_step, model, choice)

            def wanted(state):
                return (state.made < until) & ~state.done.all()

            return self._placed(jax.lax.while_loop(wanted, step, state))

        self._programs[spec] = prefill, decode
        return prefill, decode

    def _placed(self, state: _State) -> _State:
        """Keeps the state where the rules want it, so that the loop is compiled once."""
        rules, mesh = Rules(), self._base.mesh
        rows = ("groups", "rows")
        of_past = ("layers", *rows, "heads", None, None)
        axes = _State(Past(of_past, of_past), (*rows, None), (), rows)
        return jax.tree.map(
            lambda x, axes: jax.lax.with_sharding_constraint(
                x, rules.sharding(mesh, axes, x.shape)
            ),
            state,
            axes,
        )

    def _put(self, values, dtype=np.float32) -> jax.Array:
        whole = Rules().sharding(self._base.mesh, (), ())
        return jax.device_put(np.asarray(values, dtype), whole)

    def _batches(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[int] | None
    ) -> list[np.ndarray]:
        """Numbers of prompts [g, b] by batch, -1 where there is none; like lengths together."""
        adapters = np.zeros(len(prompts), int) if adapters is None else np.asarray(adapters)
        order = np.argsort([len(p) for p in prompts], kind="stable")
        queues = [order[adapters[order] == n] for n in range(adapters.max() + 1)]
        count = max(-(-len(queue) // self._rows) for queue in queues)
        batches = np.full((count, len(queues), self._rows), -1)
        for group, queue in enumerate(queues):
            for number, some in enumerate(np.array_split(queue, count)):
                batches[number, group, : len(some)] = some
        return list(batches)

    def _lay_out(
        self, prompts: Sequence[Sequence[int]], batch: np.ndarray, sampling: Sampling
    ) -> dict[str, jax.Array]:
        length = _rounded(max(len(prompts[i]) for i in batch.ravel() if i >= 0), _LENGTHS)
        tokens = np.zeros((*batch.shape, length), np.int32)
        lengths = np.ones(batch.shape, np.int32)
        for place in np.ndindex(batch.shape):
            if batch[place] >= 0:
                prompt = prompts[batch[place]]
                tokens[place][: len(prompt)] = prompt
                lengths[place] = len(prompt)
        arrays = {
            "tokens": tokens,
            "lengths": lengths,
            "real": batch >= 0,
            "keys": _keys(sampling.seed, np.maximum(batch, 0)),
        }
        rules, mesh = Rules(), self._base.mesh
        axes = ("groups", "rows", None)
        placed = {
            name: jax.device_put(x, rules.sharding(mesh, axes[: x.ndim], x.shape))
            for name, x in arrays.items()
        }
        return placed | {"ids": self._put(np.arange(len(batch)), np.int32)}


@jax.jit
def _keys(seed: int, numbers: jax.Array) -> jax.Array:
    """A random key for each prompt, by its number."""

    def one(number: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.key(seed), number)

    return jax.vmap(jax.vmap(one))(numbers)


def _step(model: Llama, choice: dict, state: _State) -> _State:
    """Computes the newest token and chooses the next."""
    lengths = choice["lengths"]
    room = state.tokens.shape[-1]
    padded = state.past.k.shape[-2] - room  # S
    newest = state.made - 1
    token = jax.lax.dynamic_index_in_dim(state.tokens, newest, axis=2)
    places = jnp.arange(padded + room)
    seen = (places < lengths[..., None]) | ((places >= padded) & (places < padded + newest))
    positions = (lengths + newest)[..., None]
    hidden, new = model.extend(token, choice["active"], positions, state.past, seen)
    past = jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, padded + newest, axis=-2),
        state.past,
        new,
    )
    chosen = _choose(model, hidden, state.made, choice)
    tokens = jax.lax.dynamic_update_slice_in_dim(
        state.tokens, chosen[..., None], state.made, axis=2
    )
    done = state.done | jnp.isin(chosen, choice["stop"])
    return _State(past, tokens, state.made + 1, done)


def _choose(model: Llama, hidden: jax.Array, number: jax.Array, choice: dict) -> jax.Array:
    """The next token of each row, int32 [g, b], from its hidden state [g, b, 1, d]."""
    logits = model.logits(hidden)[:, :, 0]

    def drawn(logits: jax.Array) -> jax.Array:
        scaled = logits / jnp.where(choice["temperature"] > 0, choice["temperature"], 1)
        kept = jax.lax.cond(
            choice["top_p"] < 1, lambda x: _nucleus(x, choice["top_p"]), lambda x: x, scaled
        )
        draw = jax.vmap(
            jax.vmap(lambda k, x: jax.random.categorical(jax.random.fold_in(k, number), x))
        )
        return draw(choice["keys"], kept)

    def likeliest(logits: jax.Array) -> jax.Array:
        # The first of the largest: two plain reductions, where a CPU's argmax takes twice as long.
        places = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        largest = logits == logits.max(axis=-1, keepdims=True)
        return jnp.where(largest, places, logits.shape[-1] - 1).min(axis=-1)

    chosen = jax.lax.cond(choice["temperature"] > 0, drawn, likeliest, logits)
    return chosen.astype(jnp.int32)


def _nucleus(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Leaves the most likely tokens that reach `top_p` together, and those equal to the last."""
    likelihood = jax.nn.softmax(logits, axis=-1)
    ordered = jnp.sort(likelihood, axis=-1, descending=True)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(likelihood >= least, logits, -jnp.inf)


def _until(tokens: list[int], stop: Sequence[int]) -> list[int]:
    ends = [i for i, token in enumerate(tokens) if token in stop]
    return tokens[: ends[0]] if ends else tokens


def _rounded(length: int, sizes: Sequence[int]) -> int:
    for size in sizes:
        if length <= size:
            return size
    return -(-length // sizes[-1]) * sizes[-1]
