"""A tiny Llama that knows its languages a little: tokenizer, pretraining, instruction tuning.

What comes out is an ordinary Hugging Face directory and stands to the demo as
Llama-3.1-8B-Instruct stands to the paper: it knows the languages and the task's wording, but not
the guideline that the task's labels follow.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import optax
import tokenizers
from flax import nnx

from langmerge_jax.data.batching import bucket, pad, steps_per_epoch, training_batches
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.data.examples import Example
from langmerge_jax.models.checkpoint import save_base
from langmerge_jax.models.config import LlamaConfig
from langmerge_jax.models.llama import Llama
from langmerge_jax.models.lora import without_adapters
from langmerge_jax.parallel.mesh import Rules, place
from langmerge_jax.tasks.labels import LabelTask
from langmerge_jax.training.checkpoint import Checkpoints
from langmerge_jax.training.programs import Program
from langmerge_jax.training.step import learning_rate, token_losses
from langmerge_jax.training.steplog import StepLog
from langmerge_jax.training.steps import CHECKPOINTS, STEPS, Step, run_steps

logger = logging.getLogger(__name__)

_BEGIN, _END, _USER, _ASSISTANT = "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class BaseSettings:
    """Size and schooling of the demo's base model.

    Attributes:
      vocab_size: entries of the byte-level BPE tokenizer.
      hidden_size, intermediate_size, layers, heads, kv_heads: shape of the Llama.
      batch_size, learning_rate, pretrain_epochs: of the pretraining on the unlabelled texts.
      instruct_epochs, instruct_batch_size, instruct_learning_rate: of the instruction tuning.
      buckets: sequence lengths that batches are padded to. Of texts longer than the longest only
        the beginning is read.
      checkpoint_steps: steps that a killed training does again, at most.
      seed: of weights and order.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    batch_size: int
    learning_rate: float
    instruct_epochs: int
    instruct_batch_size: int
    instruct_learning_rate: float
    buckets: tuple[int, ...]
    checkpoint_steps: int
    seed: int
    pretrain_epochs: int = 1


def train_tokenizer(texts: Sequence[str], vocab_size: int):
    """Trains a byte-level BPE tokenizer with a chat template.

    Returns:
      A transformers tokenizer.
    """
    import transformers

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    # With the prefix space a word is the same token at the start of an answer as within a text, so
    # the label words that answers consist of are words the base has read. An answer that follows a
    # prompt without chat template brings a space of its own, and is to have no second one.
    model.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.Prepend(" "),
            tokenizers.normalizers.Replace(tokenizers.Regex("^  "), " "),
        ]
    )
    # Japanese and Chinese write no spaces: without a cut where the script changes, whole clauses
    # become tokens and use up the vocabulary, and rarer words stay single bytes.
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(
                tokenizers.Regex(r"\p{Han}+|\p{Hiragana}+|[\p{Katakana}ー]+"), "isolated"
            ),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_BEGIN, _END, _USER, _ASSISTANT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=_BEGIN,
        eos_token=_END,
        pad_token=_END,
        chat_template=_CHAT_TEMPLATE,
        additional_special_tokens=[_USER, _ASSISTANT],
    )


def build_base(
    directory: pathlib.Path,
    *,
    texts: Sequence[str],
    examples: Mapping[str, Sequence[Example]],
    task: LabelTask,
    settings: BaseSettings,
    mesh: jax.sharding.Mesh,
    folder: pathlib.Path,
) -> None:
    """Trains the base and writes it to `directory`.

    Args:
      directory: receives the finished model.
      texts: unlabelled text of all languages, in the order it is read.
      examples: a few labelled rows a language, for the instruction tuning.
      task: gives them the prompt's wording.
      folder: receives step logs and checkpoints, from which a killed training goes on.
    """
    wording = [task.message(e) for rows in examples.values() for e in rows]
    # Often enough that each label word becomes one token, as it is to any large model.
    words = [*task.labels] * len(texts)
    tokenizer = train_tokenizer([*texts, *wording, *words], settings.vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.hidden_size // settings.heads,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_scaling=None,
        tie_word_embeddings=True,
        max_position_embeddings=512,
    )
    model = Llama(config, rngs=nnx.Rngs(params=settings.seed))
    graph, params = nnx.split(model)
    logger.info("base model: %d parameters", sum(x.size for x in jax.tree.leaves(params)))
    params = jax.device_put(params, Rules().sharding(mesh, (), ()))
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    longest = max(settings.buckets)
    raw = [
        Encoded((begin,), (*text, end)[: longest - 1], f"text {i}") for i, text in enumerate(ids)
    ]
    if cut := sum(len(text) + 2 > longest for text in ids):
        logger.info("%d of %d texts cut to %d tokens", cut, len(texts), longest)
    labelled = [e for rows in examples.values() for e in task.encode(tokenizer, rows)]
    for what, data, batch_size, epochs, peak in (
        (
            "pretrain base",
            raw,
            settings.batch_size,
            settings.pretrain_epochs,
            settings.learning_rate,
        ),
        (
            "instruction-tune base",
            labelled,
            settings.instruct_batch_size,
            settings.instruct_epochs,
            settings.instruct_learning_rate,
        ),
    ):
        total = steps_per_epoch(len(data), batch_size) * epochs
        batches = training_batches(
            data, rows=batch_size, epochs=epochs, seed=settings.seed, name=what
        )
        rates = (learning_rate(i, total, peak=peak, warmup=0.05) for i in range(total))
        steps = (
            _step(number, batch, rate, batch_size, settings.buckets)
            for number, (batch, rate) in enumerate(zip(batches, rates, strict=True))
        )
        place_of_this = folder / what.replace(" ", "-")
        place_of_this.mkdir(parents=True, exist_ok=True)
        with StepLog(place_of_this / STEPS) as log:
            checkpoints = Checkpoints(place_of_this / CHECKPOINTS, settings.checkpoint_steps)
            params = _fit(params, steps, total, what, mesh, graph, log, checkpoints)
    save_base(directory, params, config, tokenizer)


def _step(
    number: int, batch: Sequence[Encoded], rate: float, rows: int, buckets: Sequence[int]
) -> Step:
    answers = max(len(e.answer) for e in batch)
    length = bucket(max(map(len, batch)), buckets)
    # Either one word is to be predicted or a whole text: two shapes of targets a length, not many.
    arrays = pad([[[e] for e in batch]], length, 2 if answers <= 2 else length, rows)
    tokens, ids = sum(map(len, batch)), [e.id for e in batch]
    return Step(number, ["base"], [rate], length, arrays, {"base": tokens}, {"base": ids})


def _loss(model: Llama, batch: dict[str, jax.Array]) -> jax.Array:
    losses = token_losses(model, model(batch["tokens"], without_adapters()), batch)
    return losses.sum() / batch["weight"].sum()


def _fit(
    params: nnx.State,
    steps: Iterator[Step],
    total: int,
    what: str,
    mesh: jax.sharding.Mesh,
    graph: nnx.GraphDef,
    log: StepLog,
    checkpoints: Checkpoints,
) -> nnx.State:
    """Trains every weight with AdamW; returns the new params."""
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(0.01),
    )
    rules = Rules()
    whole = rules.sharding(mesh, (), ())
    state = (params, jax.device_put(tx.init(params), whole))

    def step(state, batch, rate):
        params, optimizer = state
        value, gradient = jax.value_and_grad(lambda p: _loss(nnx.merge(graph, p), batch))(params)
        updates, optimizer = tx.update(gradient, optimizer, params)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        return (optax.apply_updates(params, updates), optimizer), value[None]

    program = Program(step, donate=(0,), out_shardings=whole)

    def advance(state, work: Step):
        rate = jax.device_put(np.float32(work.rates[0]), whole)
        shape = (work.length, work.arrays["target"].shape[2])
        arguments = (state, place(work.arrays, mesh, rules), rate)
        compiling = 0.0
        if shape not in program:
            _, compiling = program.compile(shape, *arguments)
        state, loss = program(shape, *arguments)
        return state, loss, compiling

    params, _ = run_steps(what, state, steps, total, advance, log=log, checkpoints=checkpoints)
    return params
