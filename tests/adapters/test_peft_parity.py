"""The PEFT format against PEFT itself."""

import ml_dtypes
import numpy as np
import peft_models
import pytest

from langmerge_jax.adapters import load_adapter, save_adapter

LAYERS = {
    f"model.layers.{i}.{module}": shape
    for i in (0, 1, 11)
    for module, shape in (("self_attn.q_proj", (6, 10)), ("mlp.down_proj", (10, 7)))
}
# A module whose path another's begins with, and one that another's path ends with.
SHAPES = LAYERS | {"lm_head": (12, 10), "vision.model.layers.1.self_attn.q_proj": (6, 10)}


def assert_same_deltas(adapter, deltas):
    assert set(adapter.modules) == set(deltas)
    for path, factors in adapter.modules.items():
        delta = factors.scale * factors.b.astype(np.float64) @ factors.a.astype(np.float64)
        np.testing.assert_allclose(delta, deltas[path], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_peft_loads_what_is_written_to_the_same_deltas(tmp_path, make_adapter, dtype):
    modules = {path: (*shape, 3, 16 / 3) for path, shape in SHAPES.items()}
    adapter = make_adapter(modules, dtype)
    save_adapter(tmp_path / "out", adapter)
    model = peft_models.load({"default": tmp_path / "out"}, SHAPES)
    assert_same_deltas(adapter, peft_models.task_vectors(model))


def test_peft_loads_mixed_ranks_and_scales_to_the_same_deltas(tmp_path, make_adapter):
    modules = {
        path: (*shape, 1 + i % 5, (0.5, 1.0, 2.3)[i % 3])
        for i, (path, shape) in enumerate(SHAPES.items())
    }
    adapter = make_adapter(modules)
    assert len({(rank, scale) for *_, rank, scale in modules.values()}) == len(modules)
    save_adapter(tmp_path / "out", adapter)
    model = peft_models.load({"default": tmp_path / "out"}, SHAPES)
    assert_same_deltas(adapter, peft_models.task_vectors(model))


def test_peft_attaches_to_the_adapters_modules_and_no_others(tmp_path, make_adapter):
    mine = "model.layers.1.self_attn.q_proj"
    adapter = make_adapter({mine: (6, 10, 2, 1.0)})
    save_adapter(tmp_path / "out", adapter)
    model = peft_models.load({"default": tmp_path / "out"}, LAYERS | {"lm_head": (12, 10)})
    assert list(peft_models.task_vectors(model)) == [mine]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 5, r".*\.down_proj": 2}},
        {"alpha_pattern": {"q_proj": 3, "^lm_head": 7}},
        {
            "use_rslora": True,
            "rank_pattern": {"1.self_attn.q_proj": 6},
            "alpha_pattern": {"^model.layers.1.self_attn.q_proj": 32, "down_proj": 1},
        },
    ],
    ids=["plain", "rslora", "rank_pattern", "alpha_pattern", "all"],
)
def test_what_peft_writes_is_read_to_the_same_deltas(tmp_path, config):
    deltas = peft_models.train_and_save(
        tmp_path / "peft",
        SHAPES,
        r=4,
        lora_alpha=24,
        target_modules=["q_proj", "down_proj", "lm_head"],
        **config,
    )
    assert set(deltas) == set(SHAPES)
    assert_same_deltas(load_adapter(tmp_path / "peft"), deltas)


def test_bfloat16_of_peft_stays_bfloat16(tmp_path):
    deltas = peft_models.train_and_save(
        tmp_path / "peft", LAYERS, peft_models.torch.bfloat16, r=4, target_modules=["q_proj"]
    )
    adapter = load_adapter(tmp_path / "peft")
    dtypes = {factors.a.dtype for factors in adapter.modules.values()}
    assert dtypes == {np.dtype(ml_dtypes.bfloat16)}
    assert_same_deltas(adapter, deltas)
