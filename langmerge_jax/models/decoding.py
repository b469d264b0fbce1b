"""Generation: prompts are computed at once, then token after token in one compiled loop.

A cache holds the prompt's keys and values, padded at the end to S places, and behind them T places
for what is generated; rows of any length write their next token at the same place.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from langmerge_jax.errors import InputError
from langmerge_jax.models.attention import Past
from langmerge_jax.models.checkpoint import Base
from langmerge_jax.models.llama import Llama, Rotation
from langmerge_jax.models.lora import Active, LoraSpec
from langmerge_jax.models.stacking import split_lora
from langmerge_jax.parallel.mesh import Rules, place

# Lengths of prompts and of what is generated are rounded up to one of these, or to a multiple of
# the last: each pair that occurs is compiled once.
_LENGTHS = (16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048)
_ROOMS = (16, 64, 256, 1024)


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
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed={self.seed}: give 0 to {2**32 - 1}")


class _Programs(NamedTuple):
    """What is compiled for adapters of one shape."""

    prefill: Callable
    decode: Callable
    take_apart: Callable


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _State:
    """What the loop changes.

    Attributes:
      past: the cache, of S + T positions, stacked over layers or a list of theirs.
      tokens: int32 [g, b, T], generated.
      made: int32, how many of them.
      done: bool [g, b], rows that met a stop token.
    """

    past: Past | list[Past]
    tokens: jax.Array
    made: jax.Array
    done: jax.Array


class Decoder:
    """Generates after many prompts, with any weights of one shape.

    Args:
      base: model and devices.
      rows: prompts at a time, of each adapter.
      apart: whether a call works on a copy of the layers that is not stacked, see `Llama.extend`;
        by default on a CPU, as long as the weights are below 2 GB.
    """

    def __init__(self, base: Base, rows: int, *, apart: bool | None = None):
        if apart is None:
            size = sum(x.nbytes for x in jax.tree.leaves(base.params))
            apart = base.mesh.devices.flat[0].platform == "cpu" and size < 2e9
        self._base, self._rows, self._apart = base, rows, apart
        self._whole = Rules().sharding(base.mesh, (), ())  # On every device.
        self._programs: dict[LoraSpec | None, _Programs] = {}

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
          every: tokens after which `on_tokens` is called; by default it is after the first of a
            batch, and at its end.
          on_tokens: called with {number of the prompt: its continuation so far}.

        Returns:
          The continuations, without the stop token.

        Raises:
          InputError: if there is nothing to generate, an empty prompt, or a token or an adapter
            that is not there.
        """
        every = max_new_tokens if every is None else every
        for name, value in (("max_new_tokens", max_new_tokens), ("every", every)):
            if value < 1:
                raise InputError(f"{name}={value}: give 1 or more")
        if not prompts:
            return []
        adapters = [0] * len(prompts) if adapters is None else adapters
        self._check(prompts, adapters, spec.n if spec else 1)
        programs = self._program(spec)
        params = self._base.params if params is None else params
        lora = nnx.State({}) if lora is None else lora
        layers = programs.take_apart(params, lora) if self._apart else None
        room = _rounded(max_new_tokens, _ROOMS)
        found: list[list[int]] = [[] for _ in prompts]
        ids, batches = self._batches(prompts, adapters)
        for_all = {
            "active": Active(ids.astype(np.int32), np.ones(spec.n if spec else 1, np.float32)),
            # Filled up with what is no token: other stop tokens need no other program.
            "stop": np.asarray([*stop, *[-1] * (-len(stop) % 8)], np.int32),
            "temperature": np.float32(sampling.temperature),
            "top_p": np.float32(max(sampling.top_p, np.finfo(np.float32).tiny)),
        }
        for_all = jax.device_put(for_all, self._whole)
        for batch in batches:
            choice = self._lay_out(prompts, batch, sampling) | for_all
            tokens, real = choice.pop("tokens"), choice.pop("real")
            state = programs.prefill(params, lora, tokens, real, choice, room=room)
            while True:
                made = int(state.made)
                tokens = np.asarray(state.tokens)
                for group, row in np.ndindex(batch.shape):
                    if (number := batch[group, row]) >= 0:
                        found[number] = _until(tokens[group, row, :made].tolist(), stop)
                on_tokens({int(i): found[i] for i in batch.ravel() if i >= 0})
                if made == max_new_tokens or bool(np.asarray(state.done).all()):
                    break
                until = min(max_new_tokens, made + every)
                until = jax.device_put(np.int32(until), self._whole)
                state = programs.decode(params, lora, layers, state, until, choice)
        return found

    @property
    def compiled(self) -> int:
        """How many programs have been compiled for prompts and for what follows them."""
        return sum(
            x.prefill._cache_size() + x.decode._cache_size() for x in self._programs.values()
        )

    def _check(self, prompts: Sequence[Sequence[int]], adapters: Sequence[int], count: int) -> None:
        vocabulary = self._base.config.vocab_size
        for number, prompt in enumerate(prompts):
            if not len(prompt):
                raise InputError(f"prompt {number} is empty: there is nothing to continue")
            if unknown := [x for x in (min(prompt), max(prompt)) if not 0 <= x < vocabulary]:
                raise InputError(
                    f"prompt {number}: the model has no token {unknown[0]}, it has {vocabulary}; "
                    "is the tokenizer that of another model?"
                )
        if len(adapters) != len(prompts):
            raise InputError(f"{len(adapters)} adapters for {len(prompts)} prompts: name one each")
        if unknown := set(adapters) - set(range(count)):
            raise InputError(f"adapter {min(unknown)}: there are 0 to {count - 1}")

    def _program(self, spec: LoraSpec | None) -> _Programs:
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
            past = Past(_wider(past.k, room, -1), _wider(past.v, room, -2))
            if self._apart:
                past = [Past(*x) for x in zip(*past, strict=True)]
            made = jnp.zeros((*tokens.shape[:2], room), jnp.int32).at[..., 0].set(first)
            done = ~real | jnp.isin(first, choice["stop"])
            return self._placed(_State(past, made, jnp.int32(1), done))

        @functools.partial(jax.jit, donate_argnums=3)
        def decode(params, lora, layers, state, until, choice):
            model = nnx.merge(graph, lora, params)
            room = state.tokens.shape[-1]
            rotation = model.rotation(choice["lengths"][..., None] + jnp.arange(room))
            step = functools.partial(_step, model, layers, rotation, choice)

            def wanted(state):
                return (state.made < until) & ~state.done.all()

            return self._placed(jax.lax.while_loop(wanted, step, state))

        @jax.jit
        def take_apart(params, lora):
            return nnx.merge(graph, lora, params).apart()

        self._programs[spec] = _Programs(prefill, decode, take_apart)
        return self._programs[spec]

    def _placed(self, state: _State) -> _State:
        """Keeps the state where the rules want it, so that the loop is compiled once."""
        rules, mesh = Rules(), self._base.mesh
        rows = ("groups", "rows")
        of_past = (*rows, "heads", None, None)
        if self._apart:
            past = [Past(of_past, of_past)] * len(state.past)
        else:
            past = Past(("layers", *of_past), ("layers", *of_past))
        axes = _State(past, (*rows, None), (), rows)
        return jax.tree.map(
            lambda x, axes: jax.lax.with_sharding_constraint(
                x, rules.sharding(mesh, axes, x.shape)
            ),
            state,
            axes,
        )

    def _batches(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lays out groups, like lengths together.

        Returns:
          The adapter of each group, [g], and numbers of prompts, [batches, g, b], -1 for none.
        """
        order = np.argsort([len(p) for p in prompts], kind="stable")
        adapters = np.asarray(adapters)
        ids = np.unique(adapters)
        queues = [order[adapters[order] == n] for n in ids]
        count = max(-(-len(queue) // self._rows) for queue in queues)
        batches = np.full((count, len(queues), self._rows), -1)
        for group, queue in enumerate(queues):
            for number, some in enumerate(np.array_split(queue, count)):
                batches[number, group, : len(some)] = some
        return ids, batches

    def _lay_out(
        self, prompts: Sequence[Sequence[int]], batch: np.ndarray, sampling: Sampling
    ) -> dict[str, jax.Array]:
        length = _rounded(max(len(prompts[i]) for i in batch.ravel() if i >= 0), _LENGTHS)
        tokens, lengths = pad_prompts(prompts, batch, length)
        arrays = {
            "tokens": tokens,
            "lengths": lengths,
            "real": batch >= 0,
            "keys": _keys(np.uint32(sampling.seed), np.maximum(batch, 0)),
        }
        return place(arrays, self._base.mesh, Rules())


def pad_prompts(
    prompts: Sequence[Sequence[int]], numbers: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lays prompts out as rows.

    Args:
      prompts: token ids.
      numbers: [g, b], which of them each row holds; -1 for none.
      length: s, at least the longest of these.

    Returns:
      Tokens int32 [g, b, s], padded at the end with zeros, and lengths int32 [g, b]. A row of none
      has one token.
    """
    tokens = np.zeros((*numbers.shape, length), np.int32)
    lengths = np.ones(numbers.shape, np.int32)
    for row in zip(*np.nonzero(numbers >= 0), strict=True):
        prompt = prompts[numbers[row]]
        tokens[row][: len(prompt)] = prompt
        lengths[row] = len(prompt)
    return tokens, lengths


@jax.jit
def _keys(seed: jax.Array, numbers: jax.Array) -> jax.Array:
    """A random key for each prompt, by its number."""

    def one(number: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.key(seed), number)

    return jax.vmap(jax.vmap(one))(numbers)


def _step(
    model: Llama,
    layers: list[nnx.State] | None,
    rotation: Rotation,
    choice: dict,
    state: _State,
) -> _State:
    """Computes the newest token and chooses the next."""
    lengths = choice["lengths"]
    room = state.tokens.shape[-1]
    padded = jax.tree.leaves(state.past)[0].shape[-1] - room  # S
    newest = state.made - 1
    token, *turned = (
        jax.lax.dynamic_index_in_dim(x, newest, axis=2) for x in (state.tokens, *rotation)
    )
    places = jnp.arange(padded + room)
    seen = (places < lengths[..., None]) | ((places >= padded) & (places < padded + newest))
    hidden, new = model.extend(token, choice["active"], turned, state.past, seen, layers)
    chosen = _choose(model, hidden, state.made, choice)
    # The minimum is zero, but says that the cache has been read before it is written: otherwise a
    # CPU copies all of it for every token.
    place = padded + newest + jnp.minimum(chosen.ravel()[0], 0)
    past = jax.tree.map(
        lambda old, new: Past(
            jax.lax.dynamic_update_slice_in_dim(old.k, new.k, place, axis=-1),
            jax.lax.dynamic_update_slice_in_dim(old.v, new.v, place, axis=-2),
        ),
        state.past,
        new,
        is_leaf=lambda x: isinstance(x, Past),
    )
    tokens = jax.lax.dynamic_update_slice_in_dim(
        state.tokens, chosen[..., None], state.made, axis=2
    )
    done = state.done | jnp.isin(chosen, choice["stop"])
    return _State(past, tokens, state.made + 1, done)


def _wider(x: jax.Array, room: int, axis: int) -> jax.Array:
    """x with zeros behind it."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, room)
    return jnp.pad(x, widths)


def _choose(model: Llama, hidden: jax.Array, number: jax.Array, choice: dict) -> jax.Array:
    """The next token of each row, int32 [g, b], from its hidden state [g, b, 1, d]."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    logits = model.logits(rows, tokens_first=True)  # [v, g * b]

    def drawn(logits: jax.Array) -> jax.Array:
        scaled = logits.T / jnp.where(choice["temperature"] > 0, choice["temperature"], 1)
        kept = jax.lax.cond(
            choice["top_p"] < 1, lambda x: _nucleus(x, choice["top_p"]), lambda x: x, scaled
        )
        draw = jax.vmap(lambda k, x: jax.random.categorical(jax.random.fold_in(k, number), x))
        return draw(choice["keys"].ravel(), kept)

    def likeliest(logits: jax.Array) -> jax.Array:
        # The first of the largest: of blocks, then in that block. An argmax over all of them takes
        # a CPU as long as the logits themselves.
        logits = jnp.pad(logits, ((0, -len(logits) % 64), (0, 0)), constant_values=-jnp.inf)
        blocks = logits.reshape(64, -1, logits.shape[1])
        block = blocks.max(axis=1).argmax(axis=0)
        inside = jnp.take_along_axis(blocks, block[None, None], axis=0)[0].argmax(axis=0)
        return block * blocks.shape[1] + inside

    chosen = jax.lax.cond(choice["temperature"] > 0, drawn, likeliest, logits)
    return chosen.reshape(hidden.shape[:2]).astype(jnp.int32)


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
