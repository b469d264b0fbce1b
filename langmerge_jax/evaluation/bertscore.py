"""BERTScore: how well the tokens of a text match those of a reference, as an encoder sees them.

References: Zhang et al. 2020, arXiv 1904.09675; the package bert-score, 0.3.13.
"""

import importlib.metadata
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding

from langmerge_jax.data.batching import bucket
from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import load_tokenizer, resolve
from langmerge_jax.models.encoder import load_encoder
from langmerge_jax.parallel.mesh import MESH_AXES, Rules, put

BERTSCORE = ("bertscore_precision", "bertscore_recall", "bertscore_f1")

# Where each encoder is on the hub, and the layer of it that bert-score takes: the one that agreed
# best with people's judgements of WMT16's translations.
KNOWN = {
    "bert-base-uncased": ("google-bert", 9),
    "bert-large-uncased": ("google-bert", 18),
    "bert-base-multilingual-cased": ("google-bert", 9),
    "bert-base-chinese": ("google-bert", 8),
    "roberta-base": ("FacebookAI", 10),
    "roberta-large": ("FacebookAI", 17),
    "roberta-large-mnli": ("FacebookAI", 19),
    "xlm-roberta-base": ("FacebookAI", 9),
    "xlm-roberta-large": ("FacebookAI", 17),
}

# Tokens that texts are padded to, each compiled once.
_BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
# Up to so many tokens a text, a batch has `batch_size` of them; of longer ones it has fewer, so
# that it has no more tokens. On a CPU that keeps it in the cache.
_SHORT = 32


def signature(model: str, layer: int | None = None) -> str:
    """Returns what scores depend on, to stand beside them; the encoder is not loaded.

    Args:
      model, layer: see `BertScorer`.
    """
    ours, theirs = map(importlib.metadata.version, ("langmerge-jax", "transformers"))
    layer = find_encoder(model, layer)[1]
    return f"{model}_L{layer}_no-idf_langmerge-jax={ours}(transformers={theirs})"


class BertScorer:
    """Scores texts against a reference each, without weights by rarity and without rescaling.

    Scores are those of bert-score with its defaults. Apart are three corners:
      - A token whose best match is below zero counts with that. bert-score lets it match the
        padding of its batch, with zero, so that there the batch decides.
      - A text of tokens that do not count, such as a separator, scores 0 as an empty one does.
        bert-score gives NaN.
      - RoBERTa's tokenizer gets the space before the first word that bert-score asks for in a way
        that transformers 5 ignores.

    Rows are spread over the devices of this process, which needs no other.

    Args:
      model: directory or hub name of a BERT, RoBERTa or XLM-R.
      layer: the hidden layer to compare; of a few well-known models it is that of bert-score.
      batch_size: texts of up to 32 tokens at a time; of longer ones proportionally fewer. Rounded
        up to a multiple of the devices.

    Raises:
      InputError: where `layer` is needed or does not exist, and for what `load_encoder` and
        `load_tokenizer` refuse.
    """

    def __init__(self, model: str, layer: int | None = None, batch_size: int = 64):
        # Slow to import.
        import transformers

        name, self._layer = find_encoder(model, layer)
        self._model, self._batch_size, self._mesh = model, batch_size, _local_mesh()
        encoder = load_encoder(name, self._layer, mesh=self._mesh)
        self._config = encoder.config
        self._tokenizer = load_tokenizer(resolve(name))
        # A word without a space before it is another one to it.
        self._before = " " * isinstance(self._tokenizer, transformers.RobertaTokenizer)
        # Some tokenizers state no limit.
        self._limit = min(self._tokenizer.model_max_length, encoder.config.longest)
        self._buckets = (*(x for x in _BUCKETS if x < self._limit), self._limit)
        graph, self._params = nnx.split(encoder)

        @jax.jit
        def embed(params, tokens, lengths):
            hidden = nnx.merge(graph, params)(tokens, lengths)
            return hidden / jnp.linalg.norm(hidden, axis=-1, keepdims=True)

        self._embed, self._match = embed, jax.jit(greedy_match)

    @property
    def signature(self) -> str:
        """What the scores depend on, to stand beside them."""
        return signature(self._model, self._layer)

    def __call__(
        self, candidates: Sequence[str], references: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Scores candidates against one reference each.

        Texts are stripped of white space around them, and cut to what tokenizer and encoder take.
        Each distinct one is encoded once a call; the vectors of all, 4 d bytes a token, are held
        in memory.

        Args:
          candidates, references: n texts each.

        Returns:
          {metric: float64 [n]} of precision, recall and F1.

        Raises:
          InputError: for a token that the encoder does not have.
          ValueError: if there are not as many candidates as references.
        """
        pairs = [(a.strip(), b.strip()) for a, b in zip(candidates, references, strict=True)]
        texts = {text: None for pair in pairs for text in pair}
        numbers = {text: number for number, text in enumerate(texts)}
        rows = np.array([[numbers[text] for text in pair] for pair in pairs], int).reshape(-1, 2)
        vectors = self._encode(list(texts))
        scores = np.zeros((len(pairs), 2))
        for some, shape in self._batches(vectors.lengths[rows].max(axis=1)):
            sides = [vectors.pad(side, *shape) for side in rows[some].T]
            scores[some] = np.asarray(self._match(*map(self._put, sides)))[: len(some)]
        precision, recall = scores.T
        total = precision + recall
        f1 = np.divide(2 * precision * recall, total, out=np.zeros(len(pairs)), where=total != 0)
        return dict(zip(BERTSCORE, (precision, recall, f1), strict=True))

    def _encode(self, texts: list[str]) -> "_Vectors":
        found = self._tokenize(texts)
        lengths = np.array([len(ids) for ids in found], int)
        starts = lengths.cumsum() - lengths
        flat = np.array([x for ids in found for x in ids], np.int32)
        # Beyond its embeddings jax would read the last one.
        if (most := flat.max(initial=0)) >= self._config.vocab_size:
            raise InputError(
                f"BERTScore by {self._model!r}: its tokenizer gives token {most}, but its encoder "
                f"has {self._config.vocab_size}; take the tokenizer that it was trained with"
            )
        # What frames a text may be matched, but is not asked for a match.
        frame = [self._tokenizer.cls_token_id, self._tokenizer.sep_token_id]
        weights = np.isin(flat, frame, invert=True).astype(np.float32)
        vectors = np.empty((len(flat), self._config.hidden_size), np.float32)
        for some, shape in self._batches(lengths):
            tokens = np.full(shape, self._config.pad_token_id, np.int32)
            real = np.zeros(shape[0], np.int32)
            real[: len(some)] = lengths[some]
            for row, number in enumerate(some):
                tokens[row, : real[row]] = found[number]
            unit = np.asarray(self._embed(self._params, *self._put((tokens, real))))
            for row, start in enumerate(starts[some]):
                vectors[start : start + real[row]] = unit[row, : real[row]]
        return _Vectors(vectors, weights, starts, lengths)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        spaced = [self._before + text if text else text for text in texts]
        return self._tokenizer(spaced, truncation=True, max_length=self._limit)["input_ids"]

    def _batches(self, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        """Yields (numbers of texts, (rows, tokens a row) that hold them), the longest first."""
        order, devices = np.argsort(-lengths, kind="stable"), self._mesh.size
        while order.size:
            length = bucket(int(lengths[order[0]]), self._buckets)
            rows = max(1, self._batch_size * min(1, _SHORT / length))
            rows = math.ceil(rows / devices) * devices
            yield order[:rows], (rows, length)
            order = order[rows:]

    def _put(self, arrays: tuple[np.ndarray, ...]) -> tuple[jax.Array, ...]:
        def where(x: np.ndarray) -> NamedSharding:
            return Rules().sharding(self._mesh, ("rows", *(None,) * (x.ndim - 1)), x.shape)

        return put(arrays, tuple(map(where, arrays)))


class _Vectors(NamedTuple):
    """Texts as their tokens' vectors, one text after another.

    Attributes:
      unit: float32 [tokens of all texts, d], of length one.
      weights: float32 [tokens of all texts], 0 for those that count only as matches of others.
      starts, lengths: int [texts], where each begins and how many tokens it has.
    """

    unit: np.ndarray
    weights: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def pad(self, texts: np.ndarray, rows: int, length: int) -> tuple[np.ndarray, ...]:
        """Lays texts out as `greedy_match` takes them, as `rows` rows of `length` tokens."""
        lengths, starts = np.zeros((2, rows), np.int32)
        lengths[: len(texts)], starts[: len(texts)] = self.lengths[texts], self.starts[texts]
        real = np.arange(length) < lengths[:, None]
        index = np.where(real, starts[:, None] + np.arange(length), 0)
        return self.unit[index], self.weights[index] * real, real


def find_encoder(model: str, layer: int | None) -> tuple[str, int]:
    """Returns the name under which an encoder is found, and the layer to take.

    Raises:
      InputError: if the layer is not given and not known.
    """
    last = pathlib.PurePath(model).name
    organisation, usual = KNOWN.get(last, (None, None))
    if layer is None and usual is None:
        raise InputError(
            f"BERTScore by {model!r}: its best layer is not known; state the layer, or take one of "
            f"{', '.join(KNOWN)}"
        )
    # Papers, and bert-score, call them by their last names.
    bare = organisation and model == last and not pathlib.Path(model).is_dir()
    return f"{organisation}/{model}" if bare else model, usual if layer is None else layer


def _local_mesh() -> Mesh:
    """The devices of this process, for rows."""
    devices = jax.local_devices()
    sizes = (len(devices), *(1,) * (len(MESH_AXES) - 1))
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(sizes, MESH_AXES, axis_types=axis_types, devices=devices)


# Texts as vectors of length one [b, s, d], the weights of their tokens [b, s], and where there is a
# token: bool [b, s].
Padded = tuple[jax.Array, jax.Array, jax.Array]


def greedy_match(candidate: Padded, reference: Padded) -> jax.Array:
    """Returns how like its best match in the other text a token is, on average.

    Args:
      candidate, reference: see `Padded`, with s and t places.

    Returns:
      float32 [b, 2], precision and recall; 0 where no token of one of the texts counts.

    References: arXiv 1904.09675, section 3.
    """
    (x, x_weight, x_real), (y, y_weight, y_real) = candidate, reference
    similarity = jnp.einsum("bsd,btd->bst", x, y, precision="highest")
    both = x_real[:, :, None] & y_real[:, None, :]
    # No cosine is less.
    similarity = jnp.where(both, similarity, -1)
    sums = x_weight.sum(axis=1), y_weight.sum(axis=1)
    precision = (similarity.max(axis=2) * x_weight).sum(axis=1) / sums[0]
    recall = (similarity.max(axis=1) * y_weight).sum(axis=1) / sums[1]
    countable = (sums[0] > 0) & (sums[1] > 0)
    return jnp.where(countable[:, None], jnp.stack([precision, recall], axis=1), 0)
