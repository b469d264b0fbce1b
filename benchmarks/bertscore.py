"""BERTScore beside the package bert-score: the cases of `benchmarks.evaluate` that have an encoder.

The texts are reviews from the demo's grammar, in its six languages, no two the same. The encoder
has the shape of a small multilingual one, 6 layers of width 384, with random float32 weights. Both
sides read the same directory and score the same pairs, which are compared; everything is loaded and
compiled before, and the sides take turns. Ours cuts the CPU into a device a core, as the demo does.
"""

import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from benchmarks import measuring
from benchmarks.measuring import Section
from langmerge_jax.demo.grammar import LANGUAGES, render, sample
from langmerge_jax.evaluation.bertscore import BERTSCORE, BertScorer

LAYERS, WIDTH, HEADS, LONGEST, ROWS = 6, 384, 12, 512, 64
# The fewest and most sentences of a text.
CASES = {"bertscore_sentences": (1, 1), "bertscore_paragraphs": (3, 8)}


def sections(scratch: pathlib.Path, pairs: int, repeats: int) -> Iterator[tuple[str, Section]]:
    """Yields each case with what it found.

    Args:
        scratch: Receives the encoder, and loses it.
        pairs: Of texts in each case.
        repeats: Of each timing.
    """
    directory = scratch / "encoder"
    texts = {name: make_texts(2 * pairs, *size) for name, size in CASES.items()}
    make_encoder(directory, [text for some in texts.values() for text in some])
    for name, some in texts.items():
        yield name, compare(directory, some[0::2], some[1::2], repeats)
    shutil.rmtree(directory)


def make_texts(count: int, fewest: int, most: int) -> list[str]:
    """Draws distinct texts; two that follow one another are of one language."""
    rng, languages, texts = np.random.default_rng(0), list(LANGUAGES.values()), {}
    while len(texts) < count:
        language = languages[len(texts) // 2 % len(languages)]
        sentences = rng.integers(fewest, most + 1)
        parts = (render(sample(rng), language, rng) for _ in range(sentences))
        texts[language.space.join(parts)] = None
    return list(texts)


def make_encoder(directory: pathlib.Path, texts: Sequence[str]) -> None:
    """Writes a random BERT, with a tokenizer trained on the texts."""
    import tokenizers
    import torch
    import transformers

    trained = tokenizers.BertWordPieceTokenizer(lowercase=False)
    trained.train_from_iterator(texts, vocab_size=8000, show_progress=False)
    tokenizer = transformers.BertTokenizer(
        vocab=trained.get_vocab(), do_lower_case=False, model_max_length=LONGEST
    )
    tokenizer.save_pretrained(directory)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=LONGEST,
    )
    torch.manual_seed(0)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(directory)


def ours(directory: pathlib.Path, *pairs: list[str]) -> Callable[[], np.ndarray]:
    """Our scores [n, 3], ready to be computed."""
    scorer = BertScorer(str(directory), LAYERS, batch_size=ROWS)

    def run() -> np.ndarray:
        found = scorer(*pairs)
        return np.stack([found[name] for name in BERTSCORE], axis=1)

    return run


def theirs(directory: pathlib.Path, *pairs: list[str]) -> Callable[[], np.ndarray]:
    """Those of bert-score, likewise."""
    import bert_score
    import torch

    torch.set_num_threads(os.cpu_count())
    scorer = bert_score.BERTScorer(model_type=str(directory), num_layers=LAYERS, device="cpu")
    return lambda: np.stack([x.numpy() for x in scorer.score(*pairs, batch_size=ROWS)], axis=1)


def compare(
    directory: pathlib.Path, candidates: list[str], references: list[str], repeats: int
) -> Section:
    """Pairs a second of both."""
    count = len(candidates)
    section = Section(
        pairs=count,
        layers=LAYERS,
        width=WIDTH,
        rows=ROWS,
        dtype="float32",
        devices=jax.device_count(),
        repeats=repeats,
    )
    pairs = candidates, references
    contestants = {"ours": ours(directory, *pairs), "bert-score": theirs(directory, *pairs)}
    scores = {name: run() for name, run in contestants.items()}
    apart = np.abs(scores["ours"] - scores["bert-score"]).max()
    section.note("scores, greatest difference", apart, most=1e-4)
    seconds = measuring.interleaved(contestants, repeats)
    warm = {name: section.median(f"{name} warm", x) for name, x in seconds.items()}
    for name, taken in warm.items():
        section.note(f"{name}, pairs a second", count / taken)
    section.note("times faster", warm["bert-score"] / warm["ours"], "x", least=1)
    return section
