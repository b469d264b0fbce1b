"""Adapters that PEFT trains on real architectures: embeddings, heads, transposed weights."""

import json
import logging

import numpy as np
import peft_models
import pytest
import safetensors.numpy

from langmerge_jax.adapters import load_adapter, save_adapter

CASES = {
    "lm_head": ("llama", {"r": 2, "target_modules": ["q_proj", "lm_head"]}),
    "embedding": (
        "llama",
        {
            "r": 3,
            "lora_alpha": 5,
            "use_rslora": True,
            "target_modules": ["embed_tokens", "lm_head", "up_proj"],
        },
    ),
    "patterns": (
        "llama",
        {
            "r": 3,
            "target_modules": ["model.embed_tokens", "q_proj", "v_proj"],
            "rank_pattern": {"embed_tokens": 5, "v_proj": 1},
            "alpha_pattern": {"embed_tokens": 2},
        },
    ),
    "regex": ("llama", {"r": 2, "target_modules": r".*\.(q_proj|embed_tokens)"}),
    "all-linear": ("llama", {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}),
    "embeddings as heads": (
        "llama",
        {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "score": ("llama classifier", {"r": 2, "target_modules": ["q_proj"], "task_type": "SEQ_CLS"}),
    "classifier of two layers": (
        "roberta classifier",
        {"r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS"},
    ),
    "two layers without a task": (
        "roberta classifier",
        {"r": 2, "target_modules": ["query"], "modules_to_save": ["classifier"]},
    ),
    "gpt2": ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_fc", "wte"]}),
    "tied": (
        "tied",
        {"r": 2, "target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied heads": (
        "tied",
        {
            "r": 2,
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
}
WITH_HEADS = {
    "embeddings as heads",
    "score",
    "classifier of two layers",
    "two layers without a task",
    "tied heads",
}


def stored_changes(adapter):
    """The adapter's deltas in the layout of the stored weights."""
    return {
        path: x.delta(np.float64).T
        if x.embedding or adapter.fan_in_fan_out
        else x.delta(np.float64)
        for path, x in adapter.modules.items()
    }


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_what_peft_trains_is_read_and_written_with_the_same_meaning(tmp_path, case):
    kind, config = CASES[case]
    model = peft_models.train_tiny(kind, tmp_path / "peft", **config)
    adapter = load_adapter(tmp_path / "peft")
    assert_close(stored_changes(adapter), peft_models.weight_changes(model))
    assert_close(adapter.heads, peft_models.saved_modules(model))
    assert bool(adapter.heads) == (case in WITH_HEADS)

    save_adapter(tmp_path / "ours", adapter)
    again = peft_models.load_tiny(kind, tmp_path / "ours")
    assert_close(peft_models.weight_changes(again), peft_models.weight_changes(model))
    assert_close(peft_models.saved_modules(again), peft_models.saved_modules(model))
    np.testing.assert_array_equal(peft_models.outputs(again), peft_models.outputs(model))
    untouched = peft_models.tiny_model(kind).eval()
    assert np.abs(peft_models.outputs(again) - peft_models.outputs(untouched)).max() > 0.01


def test_factors_of_an_embedding_are_marked_and_written_under_pefts_names(tmp_path):
    peft_models.train_tiny(
        "llama", tmp_path / "peft", r=2, target_modules=["embed_tokens", "q_proj"]
    )
    adapter = load_adapter(tmp_path / "peft")
    embedding = adapter.modules["model.embed_tokens"]
    assert embedding.embedding
    assert (embedding.in_features, embedding.out_features) == (50, 16)
    assert not adapter.modules["model.layers.0.self_attn.q_proj"].embedding
    save_adapter(tmp_path / "ours", adapter)
    weights = "adapter_model.safetensors"
    theirs = safetensors.numpy.load_file(tmp_path / "peft" / weights)
    ours = safetensors.numpy.load_file(tmp_path / "ours" / weights)
    copy = "base_model.model.model.embed_tokens.base_layer.weight"
    assert theirs.keys() - ours.keys() == {copy}
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)


def test_a_copied_base_weight_is_left_out_with_one_warning(tmp_path, caplog):
    peft_models.train_tiny("llama", tmp_path / "peft", r=2, target_modules=["lm_head", "q_proj"])
    with caplog.at_level(logging.WARNING):
        load_adapter(tmp_path / "peft")
    (record,) = caplog.records
    assert "left out lm_head.base_layer.weight" in record.getMessage()
    assert str(tmp_path / "peft") in record.getMessage()


def test_transposed_weights_are_remembered(tmp_path):
    peft_models.train_tiny("gpt2", tmp_path / "peft", r=2, target_modules=["c_attn"])
    adapter = load_adapter(tmp_path / "peft")
    assert adapter.fan_in_fan_out
    factors = adapter.modules["transformer.h.0.attn.c_attn"]
    assert (factors.in_features, factors.out_features) == (16, 48)
    save_adapter(tmp_path / "ours", adapter)
    config = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True
