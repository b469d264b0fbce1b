"""The encoder gives what transformers' BERT, RoBERTa and XLM-R give, and refuses others."""

import json

import encoder_models
import jax
import llama_models
import numpy as np
import pytest
from flax import nnx

from langmerge_jax.errors import InputError
from langmerge_jax.models.encoder import from_hf, load_encoder
from langmerge_jax.parallel.mesh import make_mesh

FAMILIES = encoder_models.FAMILIES


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A random checkpoint of every family, by name; one of them in three files."""
    folder = tmp_path_factory.mktemp("encoders")
    return {
        kind: encoder_models.checkpoint(folder / kind, fields, files=3 if kind == "bert" else 1)
        for kind, fields in FAMILIES.items()
    }


def load(directory, layers):
    return load_encoder(str(directory), layers, mesh=make_mesh())


def hidden(encoder, tokens, lengths):
    graph, params = nnx.split(encoder)
    run = jax.jit(lambda params, *given: nnx.merge(graph, params)(*given))
    return np.asarray(run(params, tokens, lengths))


def rows(fields, length):
    """Random tokens of rows as long as `length` and shorter, padded; one has the padding's token
    in its midst."""
    lengths = np.array([length, length // 2, 2, length - 1], np.int32)
    tokens = np.random.default_rng(1).integers(5, fields["vocab_size"], (4, length), np.int32)
    tokens[1, 3] = fields["pad_token_id"]
    padding = np.arange(length) >= lengths[:, None]
    return np.where(padding, fields["pad_token_id"], tokens).astype(np.int32), lengths


@pytest.mark.parametrize("kind", FAMILIES)
def test_hidden_states_equal_transformers(kind, directories):
    pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    fields = FAMILIES[kind]
    tokens, lengths = rows(fields, from_hf(fields, "here").longest)
    expected = encoder_models.hidden_of(directories[kind], tokens, lengths)
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    for layers in (0, fields["num_hidden_layers"]):
        found = hidden(load(directories[kind], layers), tokens, lengths)
        np.testing.assert_allclose(found[real], expected[layers][real], rtol=0, atol=1e-5)
    assert np.std(expected[-1][real]) > 0.5


@pytest.mark.parametrize("kind", FAMILIES)
def test_padding_changes_nothing(kind, directories):
    tokens, lengths = rows(FAMILIES[kind], 20)
    encoder = load(directories[kind], 2)
    wider = np.pad(tokens, ((0, 0), (0, 9)), constant_values=FAMILIES[kind]["pad_token_id"])
    found, expected = hidden(encoder, wider, lengths), hidden(encoder, tokens, lengths)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(found[row, :length], expected[row, :length], atol=1e-5)


def test_only_the_layers_asked_for_are_read(directories, tmp_path):
    """A file without the others' tensors is enough."""
    fields = FAMILIES["roberta"]
    kept = {k: x for k, x in encoder_models.weights(fields).items() if "layer.2." not in k}
    directory = encoder_models.checkpoint(tmp_path / "short", fields)
    llama_models.save(directory, kept)
    tokens, lengths = rows(fields, 16)
    found = hidden(load(directory, 2), tokens, lengths)
    expected = hidden(load(directories["roberta"], 2), tokens, lengths)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError, match=r"'encoder\.layer\.2\.attention\.output.* missing"):
        load(directory, 3)


@pytest.mark.parametrize("layers", [-1, 4])
def test_a_layer_that_there_is_not_is_refused(layers, directories):
    with pytest.raises(InputError, match=f"it has 3 layers, not {layers}; choose 0 to 3"):
        load(directories["bert"], layers)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "deberta-v2"}, "model_type='deberta-v2' .* bert, roberta, xlm-roberta"),
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new' is not supported, only 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "='relative_key' .* only 'absolute'"),
        ({"is_decoder": True}, "is_decoder=True is not supported"),
        ({"num_attention_heads": 5}, "hidden_size=32 is not a multiple of num_attention_heads=5"),
    ],
)
def test_what_is_not_implemented_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        from_hf(FAMILIES["bert"] | change, "config.json")


def test_a_field_that_is_missing_is_named():
    fields = {k: v for k, v in FAMILIES["bert"].items() if k != "intermediate_size"}
    with pytest.raises(InputError, match=r"config\.json: the field 'intermediate_size' is missing"):
        from_hf(fields, "config.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"roberta.embeddings.LayerNorm.bias": None}, r"'embeddings\.LayerNorm\.bias' is missing"),
        (
            {"roberta.encoder.layer.0.output.dense.bias": np.zeros(31, np.float32)},
            r"layer\.0\.output\.dense\.bias has shape \[31\], config\.json asks for \[32\]",
        ),
    ],
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(change, words, tmp_path):
    fields = FAMILIES["roberta"]
    directory = encoder_models.checkpoint(tmp_path / "changed", fields)
    tensors = encoder_models.weights(fields) | change
    llama_models.save(directory, {k: x for k, x in tensors.items() if x is not None})
    with pytest.raises(InputError, match=words):
        load(directory, 1)


def test_no_such_directory_and_no_config_are_said(tmp_path):
    with pytest.raises(InputError, match=r"encoder '\./nowhere': no such directory"):
        load("./nowhere", 1)
    with pytest.raises(InputError, match=r"no config\.json"):
        load(tmp_path, 1)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match=r"config\.json: no JSON object"):
        load(tmp_path, 1)
