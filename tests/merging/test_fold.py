"""Folding into a base's files, against PEFT's merge and transformers' loading."""

import json
import logging
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from langmerge_jax.adapters import load_adapter
from langmerge_jax.errors import InputError
from langmerge_jax.merging import DenseDelta
from langmerge_jax.merging.fold import fold_directory


def dense(deltas, **fields):
    """Deltas by module as a full-rank merge, which comes in the order of the files."""

    def stream(modules, in_order):
        assert in_order
        yield from ((module, deltas[module]) for module in modules)

    return DenseDelta({module: x.shape for module, x in deltas.items()}, stream, **fields)


def base_of(directory, tensors, config=None, shards=1):
    """Writes a base of `tensors`, by transformers' naming of shards."""
    directory.mkdir()
    names = list(tensors)
    places = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        safetensors.numpy.save_file(part, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config or {"tie_word_embeddings": False}))
    return directory


def loaded(directory):
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(path)
    return found


def random(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {"target_modules": ["q_proj", "down_proj", "lm_head", "embed_tokens"]}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj", "wte"]}),
        ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ],
    ids=["llama", "gpt2", "tied", "heads"],
)
def test_folded_weights_are_those_of_pefts_merge(tmp_path, kind, config, caplog):
    import peft_models

    model = peft_models.train_tiny(kind, tmp_path / "adapter", r=2, **config)
    peft_models.tiny_model(kind).save_pretrained(tmp_path / "base", max_shard_size="4KB")
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 2
    adapter = load_adapter(tmp_path / "adapter")
    caplog.clear()
    deltas = dense(
        {module: x.delta() for module, x in adapter.modules.items()},
        embeddings=[module for module, x in adapter.modules.items() if x.embedding],
        fan_in_fan_out=adapter.fan_in_fan_out,
        heads=adapter.heads,
    )
    fold_directory(tmp_path / "base", deltas, tmp_path / "out")
    expected = peft_models.merged_into_base(model)
    found = loaded(tmp_path / "out")
    assert found.keys() == loaded(tmp_path / "base").keys()
    assert expected.keys() - found.keys() <= {"lm_head.weight"}
    for name, weight in found.items():
        np.testing.assert_allclose(weight, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
    again = type(peft_models.tiny_model(kind)).from_pretrained(tmp_path / "out").eval()
    merged = peft_models.outputs(model.get_base_model())
    np.testing.assert_allclose(peft_models.outputs(again), merged, atol=1e-5)
    warned = any("tie_word_embeddings" in x.getMessage() for x in caplog.records)
    assert warned == (kind in ("tied", "gpt2"))


@pytest.mark.parametrize("shards", [1, 2])
def test_files_keep_their_names_and_what_has_no_delta_keeps_its_bytes(tmp_path, shards):
    tensors = {
        "a.weight": random((4, 6), ml_dtypes.bfloat16),
        "a.bias": random((4,), np.float32),
        "norm.weight": random((6,), np.float16),
        "steps": np.array([3], np.int64),
        "empty": np.zeros((0, 2), np.float32),
    }
    base = base_of(tmp_path / "base", tensors, shards=shards)
    (base / "tokenizer.json").write_text("{}")
    fold_directory(base, dense({"a": np.ones((4, 6), np.float32)}), tmp_path / "out")
    names = sorted(path.name for path in base.iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for path in base.glob("*.safetensors"):
        with (
            safetensors.safe_open(path, "np") as before,
            safetensors.safe_open(tmp_path / "out" / path.name, "np") as after,
        ):
            assert before.metadata() == after.metadata()
            assert sorted(before.keys()) == sorted(after.keys())
    found = loaded(tmp_path / "out")
    for name, value in tensors.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert (found[name].tobytes() == value.tobytes()) == (name != "a.weight")


def test_companions_are_written_once_the_modules_are_through(tmp_path):
    base = base_of(tmp_path / "base", WEIGHT)
    (base / "README.md").write_text("the base's card")
    made = []

    def stream(modules, in_order):
        for module in modules:
            yield module, np.ones((4, 6), np.float32)
        made.extend(modules)

    def companions():
        assert made == ["model.q"]
        return {"README.md": "the merge's card", "merge.json": "{}"}

    deltas = DenseDelta({"model.q": (4, 6)}, stream)
    fold_directory(base, deltas, tmp_path / "out", companions=companions)
    assert (tmp_path / "out/README.md").read_text() == "the merge's card"
    assert (tmp_path / "out/merge.json").exists()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_the_sum_is_rounded_once(tmp_path, dtype):
    """Against a sum in float64, which is exact for these values, and one rounding."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-(2**7), 2**7, size=(3000, 1500)).astype(dtype)
    delta = (rng.integers(-(2**9), 2**9, size=weight.shape) / 2**10).astype(np.float32)
    base = base_of(tmp_path / "base", {"a.weight": weight})
    fold_directory(base, dense({"a": delta}), tmp_path / "out")
    exact = (weight.astype(np.float64) + delta).astype(dtype)
    assert loaded(tmp_path / "out")["a.weight"].tobytes() == exact.tobytes()


def test_names_without_the_first_piece_of_the_path_are_found(tmp_path):
    """The published GPT-2 names its weights h.0..., adapters say transformer.h.0..."""
    weights = {f"h.{i}.c_attn.weight": random((6, 4), seed=i) for i in range(2)}
    base = base_of(tmp_path / "base", weights)
    deltas = {f"transformer.h.{i}.c_attn": random((4, 6), seed=9 + i) for i in range(2)}
    fold_directory(base, dense(deltas, fan_in_fan_out=True), tmp_path / "out")
    for i, weight in enumerate(weights.values()):
        expected = weight + deltas[f"transformer.h.{i}.c_attn"].T
        assert np.array_equal(loaded(tmp_path / "out")[f"h.{i}.c_attn.weight"], expected)


WEIGHT = {"model.q.weight": np.ones((4, 6), np.float32)}


@pytest.mark.parametrize(
    ("tensors", "config", "module", "message"),
    [
        (WEIGHT, {}, "model.k", "has no weight for model.k; the adapters were made for another"),
        (WEIGHT, {}, "vision.model.q", "has no weight for vision.model.q"),
        (WEIGHT, {"tie_word_embeddings": True}, "lm_head", "tie_word_embeddings.*use the adapter"),
        (WEIGHT, {"model_type": "gemma"}, "lm_head", "tie_word_embeddings.*use the adapter"),
        (WEIGHT, {"tie_word_embeddings": False}, "lm_head", "has no weight for lm_head"),
        (
            {"model.q.weight": np.ones((12, 1), np.uint8)},
            {},
            "model.q",
            r"model\.q\.weight is quantised \(uint8\); fold into the unquantised base",
        ),
        ({"model.q.weight": np.ones((4, 6), np.int8)}, {}, "model.q", r"quantised \(int8\)"),
        ({"model.q.qweight": np.ones((4, 6), np.int32)}, {}, "model.q", r"quantised \(qweight\)"),
        (
            {"model.q.weight": np.ones((6, 4), np.float32)},
            {},
            "model.q",
            r"model\.safetensors: model\.q\.weight has shape \[6, 4\], the merge \[4, 6\]",
        ),
    ],
)
def test_a_base_that_the_delta_does_not_fit_is_refused_before_writing(
    tmp_path, tensors, config, module, message
):
    base = base_of(tmp_path / "base", tensors, config)
    deltas = {module: np.ones((4, 6), np.float32)}
    if module == "vision.model.q":  # Another module is found by its whole name.
        deltas["model.q"] = deltas[module]
    with pytest.raises(InputError, match=message) as error:
        fold_directory(base, dense(deltas), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_base_in_float8_is_refused(tmp_path):
    from langmerge_jax.tensorfiles import TensorWriter

    base = base_of(tmp_path / "base", {})
    with TensorWriter(base / "model.safetensors") as writer:
        writer.add("a.weight", np.ones((4, 6), ml_dtypes.float8_e4m3fn))
    with pytest.raises(InputError, match=r"a\.weight is quantised \(float8_e4m3fn\)"):
        fold_directory(base, dense({"a": np.ones((4, 6), np.float32)}), tmp_path / "out")


def test_a_base_that_has_a_weight_twice_is_refused(tmp_path):
    base = base_of(tmp_path / "base", WEIGHT)
    (base / "model.safetensors").rename(base / "a.safetensors")
    (base / "b.safetensors").write_bytes((base / "a.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"b\.safetensors: model\.q\.weight is in a\.safetensors"):
        fold_directory(base, dense({"model.q": np.ones((4, 6))}), tmp_path / "out")


def test_heads_that_the_base_lacks_are_refused(tmp_path):
    base = base_of(tmp_path / "base", WEIGHT)
    heads = {"score.weight": np.ones((2, 6), np.float32)}
    with pytest.raises(InputError, match=r"has no score\.weight"):
        fold_directory(base, dense({}, heads=heads), tmp_path / "out")


def test_broken_bases_and_taken_outputs_are_refused(tmp_path):
    base, deltas = base_of(tmp_path / "base", WEIGHT), dense({"model.q": np.ones((4, 6))})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").touch()
    for taken in ("out", "out/notes.txt"):
        with pytest.raises(InputError, match=f"{taken} exists already"):
            fold_directory(base, deltas, tmp_path / taken)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"model\.safetensors: no valid safetensors file"):
        fold_directory(base, deltas, tmp_path / "new")
    weights.unlink()
    with pytest.raises(InputError, match="a base without weights"):
        fold_directory(base, deltas, tmp_path / "new")
    index = base / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"model.q.weight": "model-00001-of-00001.safetensors"}}')
    with pytest.raises(InputError, match=r"model-00001-of-00001\.safetensors: cannot be read"):
        fold_directory(base, deltas, tmp_path / "new")
    index.write_text("[]")
    with pytest.raises(InputError, match="no valid index"):
        fold_directory(base, deltas, tmp_path / "new")


def test_weights_that_would_stay_without_the_delta_are_left_out_with_a_warning(tmp_path, caplog):
    base = base_of(tmp_path / "base", WEIGHT)
    for name in ("pytorch_model.bin", "consolidated.safetensors", "model.Q4_0.gguf"):
        (base / name).write_bytes(b"other weights")
    with caplog.at_level(logging.WARNING):
        fold_directory(base, dense({"model.q": np.ones((4, 6))}), tmp_path / "out")
    assert {x.name for x in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    (record,) = caplog.records
    for name in ("pytorch_model.bin", "consolidated.safetensors", "model.Q4_0.gguf"):
        assert name in record.getMessage()


def test_directories_of_the_base_are_left_out_with_a_warning(tmp_path, caplog):
    base = base_of(tmp_path / "base", WEIGHT)
    for name in ("original", "1_Pooling"):
        (base / name).mkdir()
        (base / name / "config.json").touch()
    with caplog.at_level(logging.WARNING):
        # The directory that is being written is none of the base's.
        fold_directory(base, dense({"model.q": np.ones((4, 6))}), base / "out")
    (record,) = caplog.records
    assert "left out 1_Pooling/, original/, as only files are copied" in record.getMessage()
    assert {x.name for x in (base / "out").iterdir()} == {"config.json", "model.safetensors"}


def test_an_empty_directory_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    base = base_of(tmp_path / "base", WEIGHT)
    fold_directory(base, dense({"model.q": np.ones((4, 6))}), tmp_path / "out")
    assert np.array_equal(loaded(tmp_path / "out")["model.q.weight"], np.full((4, 6), 2))


def test_what_comes_into_the_directory_meanwhile_is_kept(tmp_path):
    base = base_of(tmp_path / "base", WEIGHT)

    def companions():
        (tmp_path / "out").mkdir()
        (tmp_path / "out/notes.txt").write_text("mine")
        return {}

    with pytest.raises(InputError, match="out exists already"):
        fold_directory(
            base, dense({"model.q": np.ones((4, 6))}), tmp_path / "out", companions=companions
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("kind", ["delta", "head", "base"])
def test_what_the_bases_dtype_cannot_hold_is_refused(tmp_path, kind, empty):
    tensors = {
        "model.q.weight": np.full((4, 6), 60000, np.float16),
        "score.weight": np.ones((2, 6), np.float16),
    }
    delta, head = np.zeros((4, 6), np.float32), np.ones((2, 6), np.float32)
    wrong = {
        "delta": (delta, r"model\.q\.weight would hold 2 values of 24 beyond the range of float16"),
        "head": (head, r"score\.weight would hold 2 values of 12 beyond the range of float16"),
        "base": (
            tensors["model.q.weight"],
            r"q\.weight holds 2 NaN or infinite values of 24 before",
        ),
    }
    array, message = wrong[kind]
    array[1, 2:4] = np.inf if kind == "base" else 70000
    base = base_of(tmp_path / "base", tensors)
    if empty:
        (tmp_path / "out").mkdir()
    deltas = dense({"model.q": delta}, heads={"score.weight": head})
    with pytest.raises(InputError, match=message) as error:
        fold_directory(base, deltas, tmp_path / "out")
    assert "model.safetensors: " in str(error.value)
    assert ("merge with a smaller lambda" in str(error.value)) == (kind != "base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"][: 1 + empty]
    assert not empty or list((tmp_path / "out").iterdir()) == []


def test_a_fold_that_fails_leaves_nothing(tmp_path):
    base = base_of(tmp_path / "base", WEIGHT)

    def stream(modules, in_order):
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        fold_directory(base, DenseDelta({"model.q": (4, 6)}, stream), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_memory_holds_one_weight_and_not_the_shard(tmp_path):
    """In a process whose anonymous memory is limited to far less than its one shard."""
    tensors = {f"l{i}.weight": np.zeros((1024, 4096), np.float32) for i in range(12)}
    base = base_of(tmp_path / "base", tensors)
    shard = (base / "model.safetensors").stat().st_size
    limit = 3 * shard // 4
    assert shard > 200e6
    script = f"""
import resource, pathlib, numpy as np
from langmerge_jax.merging import dense, fold
def stream(modules, in_order):
    for module in modules:
        yield module, np.ones((1024, 4096), np.float32)
deltas = dense.DenseDelta({{f"l{{i}}": (1024, 4096) for i in range(12)}}, stream)
used = int(next(x for x in open("/proc/self/status") if x.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + {limit}, resource.RLIM_INFINITY))
fold.fold_directory(pathlib.Path({str(base)!r}), deltas, pathlib.Path({str(tmp_path / "out")!r}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with safetensors.safe_open(tmp_path / "out/model.safetensors", "np") as file:
        assert file.get_tensor("l11.weight")[0, 0] == 1
