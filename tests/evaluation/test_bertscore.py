"""BERTScore equals bert-score's, each text is encoded once, in few shapes."""

import os
import subprocess
import sys

import encoder_models
import numpy as np
import pytest

from langmerge_jax.errors import InputError
from langmerge_jax.evaluation.bertscore import BERTSCORE, KNOWN, BertScorer, greedy_match

TEXTS, FAMILIES = encoder_models.TEXTS, encoder_models.FAMILIES
LAYER = 2

# Of every kind: like and unlike, equal, empty on either side or both, longer than the limit, with
# spaces around, with letters that no tokenizer has seen, with the words of special tokens.
PAIRS = [
    *zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True),
    (TEXTS[4], TEXTS[4]),
    ("", TEXTS[0]),
    (TEXTS[0], " \n"),
    ("", ""),
    (" ".join(TEXTS), " ".join(TEXTS[::-1])),
    (" ".join(TEXTS), TEXTS[2]),
    (f"  {TEXTS[0]}\t", TEXTS[1]),
    ("Żółć ☃", "ok"),
    ("a [SEP] b [PAD] c", "a </s> b <pad> c"),
    ("Screen", "screen"),
]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A random encoder of every family with its tokenizer, by name."""
    folder = tmp_path_factory.mktemp("encoders")
    return {kind: encoder_models.make(folder / kind, kind) for kind in FAMILIES}


@pytest.fixture(scope="module")
def scorer(directories):
    return BertScorer(str(directories["xlm-roberta"]), LAYER, batch_size=8)


@pytest.fixture
def peer():
    """Makes bert-score's scorer; skips where it is missing."""
    pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    pytest.importorskip("bert_score", reason="bert-score is not installed (extra `dev`)")
    return encoder_models.peer


@pytest.fixture
def encoded(scorer, monkeypatch):
    """The (tokens, lengths) of every batch that the scorer encodes."""
    seen, embed = [], scorer._embed

    def watched(params, tokens, lengths):
        seen.append((np.asarray(tokens), np.asarray(lengths)))
        return embed(params, tokens, lengths)

    monkeypatch.setattr(scorer, "_embed", watched)
    return seen


def scores(scorer, pairs=PAIRS):
    """Ours, [n, 3]."""
    found = scorer(*zip(*pairs, strict=True))
    return np.stack([found[name] for name in BERTSCORE], axis=1)


def scores_of(peer, pairs=PAIRS, batch_size=64):
    """bert-score's, [n, 3]."""
    candidates, references = map(list, zip(*pairs, strict=True))
    return np.stack(
        [x.numpy() for x in peer.score(candidates, references, batch_size=batch_size)]
    ).T


@pytest.mark.parametrize("kind", FAMILIES)
def test_scores_equal_bert_score(kind, directories, peer):
    found = scores(BertScorer(str(directories[kind]), LAYER, batch_size=8))
    expected = scores_of(peer(directories[kind], LAYER))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected[: len(TEXTS)]) > 0.02  # All alike would hide errors.


def test_texts_are_cut_to_the_encoders_positions_where_the_tokenizer_sets_no_limit(tmp_path, peer):
    directory = encoder_models.make(tmp_path / "open", "roberta", model_max_length=None)
    theirs = peer(directory, LAYER)
    theirs._tokenizer.model_max_length = 48
    found = scores(BertScorer(str(directory), LAYER))
    np.testing.assert_allclose(found, scores_of(theirs), rtol=0, atol=1e-5)


def test_best_matches_below_zero_count_as_in_bert_score_where_it_pads_nothing():
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    utils = pytest.importorskip(
        "bert_score.utils", reason="bert-score is not installed (extra `dev`)"
    )
    rng = np.random.default_rng(0)
    # [b, s, d] and [b, t, d], away from each other.
    x, y = 1 + rng.normal(size=(6, 5, 4)), -1 + rng.normal(size=(6, 3, 4))
    x, y = ((v / np.linalg.norm(v, axis=2, keepdims=True)).astype(np.float32) for v in (x, y))

    def theirs(v):
        real = torch.ones(v.shape[:2], dtype=torch.bool)
        return torch.tensor(v), real, torch.ones(v.shape[:2])

    precision, recall, _ = utils.greedy_cos_idf(*theirs(y), *theirs(x))
    expected = np.stack([precision, recall], axis=1)
    assert expected.min() < -0.1

    def ours(v):  # With padding, which is like no token.
        real = np.pad(np.ones(v.shape[:2], bool), ((0, 0), (0, 4)))
        padded = np.pad(v, ((0, 0), (0, 4), (0, 0)))
        return padded, real.astype(np.float32), real

    np.testing.assert_allclose(greedy_match(ours(x), ours(y)), expected, atol=1e-6)


def test_layers_of_well_known_encoders_are_those_of_bert_score():
    pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    utils = pytest.importorskip(
        "bert_score.utils", reason="bert-score is not installed (extra `dev`)"
    )
    assert {
        name: (organisation, utils.model2layers[name]) for name, (organisation, _) in KNOWN.items()
    } == KNOWN


def test_a_well_known_name_needs_no_layer(tmp_path):
    changes = {"num_hidden_layers": 9}
    directory = encoder_models.make(tmp_path / "xlm-roberta-base", "xlm-roberta", changes=changes)
    assert "xlm-roberta-base_L9_no-idf_langmerge-jax=" in BertScorer(str(directory)).signature
    assert "xlm-roberta-base_L3_no-idf" in BertScorer(str(directory), 3).signature


def test_a_bare_name_is_that_of_its_publisher(tmp_path, monkeypatch):
    changes = {"num_hidden_layers": 9}
    directory = encoder_models.make(tmp_path / "here", "bert", changes=changes)
    asked = []

    def download(name, **_):
        asked.append(name)
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    signature = BertScorer("bert-base-multilingual-cased").signature
    assert signature.startswith("bert-base-multilingual-cased_L9_no-idf_")
    assert set(asked) == {"google-bert/bert-base-multilingual-cased"}


def test_another_needs_one_that_it_has(directories):
    with pytest.raises(InputError, match=r"best layer is not known; state the layer, or take one"):
        BertScorer(str(directories["bert"]))
    with pytest.raises(InputError, match="it has 3 layers, not 4"):
        BertScorer(str(directories["bert"]), 4)


def test_a_token_that_the_encoder_does_not_have_is_refused(tmp_path):
    directory = encoder_models.make(tmp_path / "cut", "bert", changes={"vocab_size": 100})
    with pytest.raises(InputError, match=r"its tokenizer gives token .*, but its encoder has 100"):
        BertScorer(str(directory), 1)(TEXTS, TEXTS)


def test_equal_texts_score_one_and_empty_ones_zero(scorer):
    found = scores(scorer, [(x, x) for x in TEXTS] + [("", TEXTS[0]), (TEXTS[0], " "), ("", "")])
    np.testing.assert_allclose(found[: len(TEXTS)], 1, atol=1e-6)
    np.testing.assert_array_equal(found[len(TEXTS) :], 0)


def test_a_text_of_nothing_that_counts_scores_zero(scorer):
    np.testing.assert_array_equal(scores(scorer, [("</s>", TEXTS[0]), (TEXTS[0], "<s>")]), 0)


def test_no_pairs_have_no_scores(scorer):
    assert {name: x.shape for name, x in scorer([], []).items()} == dict.fromkeys(BERTSCORE, (0,))


def test_each_candidate_needs_a_reference(scorer):
    with pytest.raises(ValueError, match="is longer than"):
        scorer(["a"], ["a", "b"])


def test_each_distinct_text_is_encoded_once(scorer, encoded):
    candidates = [*TEXTS, *TEXTS, f" {TEXTS[0]} "]
    references = [*TEXTS[::-1], *[TEXTS[0]] * (len(TEXTS) + 1)]
    scores(scorer, list(zip(candidates, references, strict=True)))
    rows = [
        tuple(row[:length])
        for tokens, lengths in encoded
        for row, length in zip(tokens, lengths, strict=True)
        if length
    ]
    assert len(rows) == len(set(rows)) == len(TEXTS)


def test_many_lengths_share_few_shapes(scorer, encoded, monkeypatch):
    matched, match = [], scorer._match

    def watched(*sides):
        matched.append(tuple(x.shape for side in sides for x in side))
        return match(*sides)

    monkeypatch.setattr(scorer, "_match", watched)
    words = " ".join(TEXTS).split()
    texts = [" ".join(words[:n]) for n in range(len(words))] + list("abcdefghijklmn")
    scores(scorer, [(x, TEXTS[0]) for x in texts])
    # Of the limit's 40 tokens there are fewer rows.
    assert {tokens.shape for tokens, _ in encoded} <= {(8, 16), (8, 24), (8, 32), (7, 40)}
    assert len(encoded) > 4
    assert len(set(matched)) <= 4


_ON_DEVICES = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from langmerge_jax.evaluation.bertscore import BertScorer
scorer, embed = BertScorer(sys.argv[1], int(sys.argv[2]), batch_size=8), None
embed = scorer._embed
def watched(params, tokens, lengths):
    assert {x.data.shape[0] for x in tokens.addressable_shards} == {2}, tokens.sharding
    return embed(params, tokens, lengths)
scorer._embed = watched
texts = sys.argv[3:]
found = scorer(texts, texts[1:] + texts[:1])
print(" ".join(map(repr, found["bertscore_f1"].tolist())))
"""


def test_rows_are_spread_over_devices_and_score_the_same(directories, scorer):
    command = [sys.executable, "-c", _ON_DEVICES, directories["xlm-roberta"], str(LAYER), *TEXTS]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    found = [float(x) for x in done.stdout.split()]
    expected = scores(scorer, list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True)))[:, 2]
    np.testing.assert_allclose(found, expected, atol=1e-6)
