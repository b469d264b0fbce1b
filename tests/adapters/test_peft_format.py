"""The PEFT format read without PEFT: what is taken, and what is refused."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

from langmerge_jax.adapters import load_adapter, save_adapter
from langmerge_jax.errors import InputError
from tests.adapters.same import assert_same

Q0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
PREFIX = "base_model.model."


@pytest.fixture
def written(tmp_path):
    """A function that writes an adapter directory of one module, with changes."""

    def write(config=None, tensors=None):
        fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
        arrays = {
            f"{PREFIX}{Q0}.lora_A.weight": np.ones((2, 6), np.float32),
            f"{PREFIX}{Q0}.lora_B.weight": np.ones((4, 2), np.float32),
        }
        arrays.update(tensors or {})
        arrays = {key: value for key, value in arrays.items() if value is not None}
        (tmp_path / "adapter_config.json").write_text(json.dumps(fields | (config or {})))
        safetensors.numpy.save_file(arrays, tmp_path / "adapter_model.safetensors")
        return tmp_path

    return write


def test_rank_and_scale_follow_the_config(written):
    assert load_adapter(written()).modules[Q0].scale == 2.0
    assert load_adapter(written({"use_rslora": True})).modules[Q0].scale == 4 / 2**0.5
    patterns = {"r": 8, "rank_pattern": {"0.self_attn.q_proj": 2}, "alpha_pattern": {"q_proj": 9}}
    assert load_adapter(written(patterns)).modules[Q0].scale == 4.5
    # Absent in files of old versions, null in some.
    assert load_adapter(written({"rank_pattern": None})).modules[Q0].rank == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "lora_only"),
        ("modules_to_save", ["lm_head"]),
        ("modules_to_save", "lm_head"),
        ("target_modules", ["v_proj"]),
        ("target_modules", ["q_proj", "model.layers.7.self_attn.q_proj"]),
        ("target_modules", r".*v_proj"),
        ("target_modules", "("),
        ("target_modules", [1]),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("alora_invocation_tokens", [5]),
        ("kasa_config", {"beta": 1.0}),
        ("use_variant_of_2027", True),
        ("init_lora_weights", "pissa_niter_16"),
        ("r", "8"),
        ("r", 2.5),
        ("lora_alpha", None),
        ("rank_pattern", {"q_proj": None}),
        ("rank_pattern", ["q_proj"]),
        ("alpha_pattern", {"(": 4}),
    ],
)
def test_a_setting_that_cannot_be_represented_is_refused_by_file_and_field(written, field, value):
    with pytest.raises(InputError) as error:
        load_adapter(written({field: value}))
    message = str(error.value)
    assert "adapter_config.json" in message
    assert field in message or (field == "r" and "rank" in message)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (f"{PREFIX}{Q0}.lora_magnitude_vector", "DoRA"),
        (f"{PREFIX}{Q0}.lora_B.bias", "a bias of lora_B"),
        (f"{PREFIX}lm_head.modules_to_save.weight", "fully trained module"),
        (f"{PREFIX}lm_head.base_layer.weight", "save_embedding_layers=False"),
        (f"{PREFIX}lm_head.weight", "save_embedding_layers=False"),
        (f"{PREFIX}{Q0}.lora_embedding_A.weight", "neither a factor of LoRA"),
        (f"{Q1}.lora_A.weight", r"outside of base_model\.model\."),
    ],
)
def test_a_tensor_that_cannot_be_represented_is_refused_by_name(written, key, message):
    directory = written(tensors={key: np.ones((2, 2), np.float32)})
    with pytest.raises(InputError, match=f"safetensors: tensor '{key}' is .*{message}"):
        load_adapter(directory)


def test_half_a_pair_is_refused(written):
    directory = written(tensors={f"{PREFIX}{Q0}.lora_B.weight": None})
    with pytest.raises(InputError, match=r"q_proj has no lora_B\.weight"):
        load_adapter(directory)
    embedding = {f"{PREFIX}{Q1}.lora_embedding_B": np.ones((4, 2), np.float32)}
    with pytest.raises(InputError, match=r"layers\.1.*q_proj has no lora_embedding_A"):
        load_adapter(written(tensors=embedding))
    both = {f"{PREFIX}{Q0}.lora_embedding_{x}": np.ones((2, 2), np.float32) for x in "AB"}
    with pytest.raises(InputError, match=r"q_proj has lora_A\.weight and lora_embedding_A"):
        load_adapter(written(tensors=both))


def test_values_that_are_not_finite_are_counted_by_file_and_module(written):
    broken = np.ones((2, 6), np.float32)
    broken[1, 2:5] = np.nan, np.inf, -np.inf
    directory = written(tensors={f"{PREFIX}{Q0}.lora_A.weight": broken})
    with pytest.raises(InputError) as error:
        load_adapter(directory)
    assert str(error.value) == (
        f"{directory}/adapter_model.safetensors: {Q0}: lora_A holds 3 NaN or infinite values of "
        "12; the run that made the adapter diverged"
    )
    heads = {f"{PREFIX}score.weight": broken}
    with pytest.raises(InputError, match=r"score\.weight holds 3 NaN or infinite values of 12"):
        load_adapter(written({"modules_to_save": ["score"]}, heads))


def test_heads_are_told_from_other_tensors_by_the_config(written):
    heads = {
        f"{PREFIX}{name}": np.full((2, 2), i, np.float32)
        for i, name in enumerate(("classifier.dense.weight", "lm_head.weight"))
    }
    config = {"modules_to_save": ["classifier", "score", "lm_head"], "task_type": "SEQ_CLS"}
    adapter = load_adapter(written(config, heads))
    assert list(adapter.heads) == ["classifier.dense.weight", "lm_head.weight"]
    assert adapter.heads["lm_head.weight"].tolist() == [[1, 1], [1, 1]]
    with pytest.raises(InputError, match="names 'embed_tokens', of which there is no tensor"):
        load_adapter(written({"modules_to_save": ["classifier", "lm_head", "embed_tokens"]}, heads))
    with pytest.raises(InputError, match="names 'score', of which there is no tensor"):
        load_adapter(written({"modules_to_save": ["score"]}, dict.fromkeys(heads)))


def test_factors_are_views_of_the_file(written):
    factors = load_adapter(written()).modules[Q0]
    assert not factors.a.flags.owndata
    assert not factors.a.flags.writeable


def test_factors_of_a_convolution_are_refused(written):
    conv = {f"{PREFIX}{Q0}.lora_A.weight": np.ones((2, 6, 1, 1), np.float32)}
    with pytest.raises(InputError, match=r"q_proj: lora_A has shape \(2, 6, 1, 1\)"):
        load_adapter(written(tensors=conv))


def test_a_config_of_another_rank_is_refused(written):
    with pytest.raises(InputError, match=r"q_proj has rank 2, adapter_config\.json says 16"):
        load_adapter(written({"r": 16}))


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_a_truncated_file_is_refused(written, size):
    path = written() / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: no valid safetensors"):
        load_adapter(path.parent)


@pytest.mark.parametrize("text", ["", "{", "[1]", b"\xff\xfe"])
def test_a_broken_config_is_refused(written, text):
    path = written() / "adapter_config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"adapter_config\.json: .*JSON"):
        load_adapter(path.parent)


def test_missing_files_are_named(written, tmp_path):
    with pytest.raises(InputError, match=r"nowhere/adapter_config\.json: cannot be read"):
        load_adapter(tmp_path / "nowhere")
    weights = written() / "adapter_model.safetensors"
    weights.unlink()
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: no such file"):
        load_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(InputError, match="a pickle, which is never read"):
        load_adapter(tmp_path)


@pytest.fixture
def sharded(tmp_path, make_adapter):
    """An adapter of three modules in two shards with an index, and the adapter."""
    modules = {Q0: (4, 6, 2, 2.0), Q1: (4, 6, 2, 2.0), "lm_head": (8, 6, 2, 2.0)}
    adapter = make_adapter(modules)
    save_adapter(tmp_path / "x", adapter)
    whole = tmp_path / "x/adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(whole)
    whole.unlink()
    places = {}
    for i, keys in enumerate((sorted(tensors)[:3], sorted(tensors)[3:]), start=1):
        name = f"adapter_model-{i:05}-of-00002.safetensors"
        safetensors.numpy.save_file({key: tensors[key] for key in keys}, tmp_path / "x" / name)
        places |= dict.fromkeys(keys, name)
    index = tmp_path / "x/adapter_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return tmp_path / "x", adapter


def test_shards_are_read_with_and_without_an_index(sharded):
    directory, adapter = sharded
    assert_same(load_adapter(directory), adapter)
    (directory / "adapter_model.safetensors.index.json").unlink()
    assert_same(load_adapter(directory), adapter)


def test_an_incomplete_set_of_shards_is_refused(sharded):
    directory, adapter = sharded
    second = directory / "adapter_model-00002-of-00002.safetensors"
    index = directory / "adapter_model.safetensors.index.json"
    (directory / "adapter_model.safetensors").write_bytes(second.read_bytes())
    with pytest.raises(InputError, match=r"stands beside adapter_model\.safetensors\.index\.json"):
        load_adapter(directory)
    (directory / "adapter_model.safetensors").unlink()
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(InputError, match=r"00002-of-00002\.safetensors: cannot be read"):
        load_adapter(directory)
    text = index.read_text()
    index.write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(InputError, match="names files of another directory"):
        load_adapter(directory)
    index.write_text("{}")
    with pytest.raises(InputError, match="no valid index of shards"):
        load_adapter(directory)
    index.unlink()
    with pytest.raises(InputError, match=r"has 1 shards, by adapter_model-00001.* to have 2"):
        load_adapter(directory)
    second.write_bytes(content)
    index.write_text(text.replace(".lora_A.weight", ".lora_C.weight", 1))
    with pytest.raises(InputError, match=r"is not in adapter_model\.safetensors\.index\.json"):
        load_adapter(directory)
    index.unlink()
    save_adapter(directory, adapter)
    assert sorted(os.listdir(directory)) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"<!doctype html><title>Not found</title>", "web page"),
        (b"PK\x03\x04archive/data.pkl", "pickle"),
    ],
)
def test_a_file_of_another_format_is_named_as_such(written, content, what):
    path = written() / "adapter_model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}: no valid safetensors file \(.*{what}"):
        load_adapter(path.parent)
