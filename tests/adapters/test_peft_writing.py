"""The PEFT format written without PEFT: all of it or nothing, one module at a time."""

import json
import os
import pathlib
import stat

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from langmerge_jax.adapters import Factors, load_adapter, save_adapter, write_adapter
from langmerge_jax.errors import InputError
from langmerge_jax.tensorfiles import TensorWriter
from tests.adapters.same import assert_same

REAL = pathlib.Path(__file__).parents[2] / "../shared/realdata/lora_adapters/open-calm-1b_r1"
Q0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no published adapter at {REAL}")
def test_a_published_adapter_of_another_architecture_survives_the_round_trip(tmp_path):
    adapter = load_adapter(REAL)
    assert adapter.base == "cyberagent/open-calm-1b"
    assert adapter.task_type == "CAUSAL_LM"
    assert len(adapter.modules) == 24
    factors = adapter.modules["gpt_neox.layers.10.attention.query_key_value"]
    assert (factors.rank, factors.scale, factors.a.dtype) == (1, 32.0, np.float16)
    save_adapter(tmp_path / "copy", adapter)
    name = "adapter_model.safetensors"
    original = safetensors.numpy.load_file(REAL / name)
    copy = safetensors.numpy.load_file(tmp_path / "copy" / name)
    assert original.keys() == copy.keys()
    assert all(original[key].tobytes() == copy[key].tobytes() for key in original)
    assert_same(load_adapter(tmp_path / "copy"), adapter)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, make_adapter, dtype):
    modules = {Q0: (4, 6, 2, 2.0), Q1: (4, 6, 3, 16 / 3), "lm_head": (8, 6, 2, 0.7 / 2**0.5)}
    adapter = make_adapter(modules, dtype, base="llama", revision="v2", task_type="CAUSAL_LM")
    save_adapter(tmp_path / "out", adapter)
    again = load_adapter(tmp_path / "out")
    assert_same(again, adapter)
    assert (again.base, again.revision, again.task_type) == ("llama", "v2", "CAUSAL_LM")


def test_an_adapter_of_one_rank_and_scale_is_written_without_patterns(tmp_path, make_adapter):
    save_adapter(tmp_path / "out", make_adapter({Q0: (4, 6, 3, 16 / 3), Q1: (4, 6, 3, 16 / 3)}))
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 16)
    assert isinstance(config["lora_alpha"], int)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}


def test_mixed_ranks_of_one_scale_mean_the_same_without_the_patterns(tmp_path, make_adapter):
    """vLLM's PEFTHelper takes lora_alpha / r for every module and r as the highest rank."""
    save_adapter(tmp_path / "out", make_adapter({Q0: (4, 6, 2, 1.0), Q1: (4, 6, 5, 1.0)}))
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["r"] == 5
    assert config["lora_alpha"] / config["r"] == 1.0


def test_an_adapter_replaces_an_adapter_and_nothing_else(tmp_path, make_adapter):
    old, new = make_adapter({Q0: (4, 6, 2, 1.0)}), make_adapter({Q1: (4, 6, 3, 1.0)})
    target = tmp_path / "deep/er/out"
    save_adapter(target, old)
    save_adapter(target, new)
    assert_same(load_adapter(target), new)

    (target / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds 'notes\.txt'"):
        save_adapter(target, old)
    assert_same(load_adapter(target), new)

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").touch()
    with pytest.raises(InputError, match=r"holds 'cat\.jpg'"):
        save_adapter(tmp_path / "photos", old)
    with pytest.raises(InputError, match="is a file"):
        save_adapter(tmp_path / "photos/cat.jpg", old)


def test_a_failed_write_leaves_the_old_adapter_and_no_litter(tmp_path, make_adapter, monkeypatch):
    old, new = make_adapter({Q0: (4, 6, 2, 1.0)}), make_adapter({Q1: (4, 6, 3, 1.0)})
    save_adapter(tmp_path / "out", old)

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(TensorWriter, "_finish", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(tmp_path / "out", new)
    assert_same(load_adapter(tmp_path / "out"), old)
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_goes_on_pointing_to_its_directory(tmp_path, make_adapter):
    adapter = make_adapter({Q0: (4, 6, 2, 1.0)})
    (tmp_path / "v1").mkdir()
    (tmp_path / "live").symlink_to("v1")
    save_adapter(tmp_path / "live", adapter)
    assert (tmp_path / "live").is_symlink()
    assert_same(load_adapter(tmp_path / "v1"), adapter)


def test_the_directory_has_the_users_usual_permissions(tmp_path, make_adapter):
    (tmp_path / "usual").mkdir()
    save_adapter(tmp_path / "out", make_adapter({Q0: (4, 6, 2, 1.0)}))
    usual = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == usual


def factors(value, rank=2, embedding=False):
    a, b = np.full((rank, 6), value, np.float32), np.full((4, rank), value, np.float32)
    return Factors(a, b, 1.0, embedding=embedding)


def test_modules_are_written_as_they_come(tmp_path, monkeypatch):
    """Each module is in the file before the next one is made."""
    added = []
    add = TensorWriter.add
    monkeypatch.setattr(TensorWriter, "add", lambda *a: (added.append(a[1]), add(*a)))

    def stream():
        for i in range(5):
            assert len(added) == 2 * i
            yield f"layers.{i}.q_proj", factors(i, rank=1 + i % 2, embedding=i == 3)

    def companions():
        assert len(added) == 11
        return {"README.md": "# card", "merge.json": "{}"}

    write_adapter(
        tmp_path / "out",
        stream(),
        base="llama",
        revision="v1",
        task_type="SEQ_CLS",
        heads={"score.weight": np.ones((3, 4), np.float16)},
        fan_in_fan_out=True,
        companions=companions,
    )
    adapter = load_adapter(tmp_path / "out")
    assert [x.rank for x in adapter.modules.values()] == [1, 2, 1, 2, 1]
    assert [x.a[0, 0] for x in adapter.modules.values()] == [0, 1, 2, 3, 4]
    assert [x.embedding for x in adapter.modules.values()] == [False] * 3 + [True, False]
    assert (adapter.base, adapter.revision, adapter.task_type) == ("llama", "v1", "SEQ_CLS")
    assert adapter.fan_in_fan_out
    assert adapter.heads["score.weight"].dtype == np.float16
    assert (tmp_path / "out/README.md").read_text() == "# card"


def test_names_without_number_are_written_however_long(tmp_path):
    """A header larger than the room that is left without knowing the paths."""
    modules = {f"model.{'x' * 500}.layers.{i}": factors(i % 7) for i in range(400)}
    write_adapter(tmp_path / "out", iter(modules.items()))
    assert {path: x.a[0, 0] for path, x in load_adapter(tmp_path / "out").modules.items()} == {
        path: x.a[0, 0] for path, x in modules.items()
    }


def test_what_comes_into_the_directory_meanwhile_is_kept(tmp_path, make_adapter):
    old = make_adapter({Q0: (4, 6, 2, 1.0)})
    save_adapter(tmp_path / "out", old)

    def stream():
        yield Q1, factors(1)
        (tmp_path / "out/notes.txt").write_text("mine")

    with pytest.raises(InputError, match=r"holds 'notes\.txt'"):
        write_adapter(tmp_path / "out", stream())
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    assert_same(load_adapter(tmp_path / "out"), old)
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_killed_writer_has_left_goes_with_the_next(tmp_path, make_adapter):
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished/adapter_model.safetensors").write_bytes(b"half")
    save_adapter(tmp_path / "out", make_adapter({Q0: (4, 6, 2, 1.0)}))
    assert os.listdir(tmp_path) == ["out"]
    assert len(os.listdir(tmp_path / "out")) == 2


@pytest.mark.parametrize("fault", ["stream", "companions", "empty"])
def test_a_stream_that_breaks_leaves_the_old_adapter_and_no_litter(tmp_path, make_adapter, fault):
    old = make_adapter({Q0: (4, 6, 2, 1.0)})
    save_adapter(tmp_path / "out", old)

    def stream():
        if fault != "empty":
            yield Q1, factors(1)
        if fault == "stream":
            raise KeyboardInterrupt

    def companions():
        raise KeyboardInterrupt

    with pytest.raises(InputError if fault == "empty" else KeyboardInterrupt):
        write_adapter(tmp_path / "out", stream(), companions=companions)
    assert_same(load_adapter(tmp_path / "out"), old)
    assert os.listdir(tmp_path) == ["out"]


def test_a_card_is_replaced_only_where_it_was_written_here(tmp_path, make_adapter):
    adapter = make_adapter({Q0: (4, 6, 2, 1.0)})
    write_adapter(tmp_path / "out", adapter.modules.items(), companions={"README.md": "mine"})
    with pytest.raises(InputError, match=r"holds 'README\.md'"):
        save_adapter(tmp_path / "out", adapter)
    assert (tmp_path / "out/README.md").read_text() == "mine"
    (tmp_path / "out/merge.json").write_text("{}")
    save_adapter(tmp_path / "out", adapter)
    assert sorted(os.listdir(tmp_path / "out")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
