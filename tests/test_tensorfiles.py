"""Safetensors files against safetensors itself."""

import json
import mmap
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langmerge_jax.errors import InputError
from langmerge_jax.tensorfiles import DTYPES, TensorWriter, map_tensors, room_for

# The library's numpy side knows no float8.
COMMON = {name: dtype for name, dtype in DTYPES.items() if not name.startswith("F8")}

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
names = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
tensor_specs = st.dictionaries(
    names.filter(lambda x: x != "__metadata__"),
    st.tuples(st.sampled_from(sorted(COMMON)), shapes),
    max_size=6,
)


def filled(specs, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 2, size=shape).astype(COMMON[dtype])
        for name, (dtype, shape) in specs.items()
    }


def write(path, tensors, **options):
    with TensorWriter(path, **options) as writer:
        for name, array in tensors.items():
            writer.add(name, array)
    return path


def read_by_library(path, framework="np"):
    with safetensors.safe_open(path, framework=framework) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        assert found[name].tobytes() == array.tobytes(), name


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensor_specs, st.integers(0, 3000))
def test_the_library_reads_what_is_written(tmp_path, specs, room):
    tensors = filled(specs)
    path = write(tmp_path / "x.safetensors", tensors, header_room=room, metadata={"format": "pt"})
    found, metadata = read_by_library(path)
    assert_same(found, tensors)
    assert metadata == {"format": "pt"}
    assert_same(map_tensors(path)[0], tensors)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            address = 8 + length + entry["data_offsets"][0]
            assert address % DTYPES[entry["dtype"]].itemsize == 0
    assert os.listdir(tmp_path) == ["x.safetensors"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensor_specs)
def test_what_the_library_writes_is_read(tmp_path, specs):
    tensors = filled(specs)
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"a": "ü"})
    found, metadata = map_tensors(path)
    assert_same(found, tensors)
    assert metadata == {"a": "ü"}


@pytest.mark.parametrize("room", [0, 4096])
def test_torch_reads_every_dtype_in_any_order(tmp_path, room):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    tensors = {
        f"{i}.{name}": np.arange(3).astype(dtype)
        for i, dtypes in enumerate((DTYPES, reversed(DTYPES)))
        for name, dtype in ((name, DTYPES[name]) for name in dtypes)
    }
    path = write(tmp_path / "x.safetensors", tensors, header_room=room)
    found, _ = read_by_library(path, "pt")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        flat = found[name].contiguous().view(torch.uint8).numpy()
        assert flat.tobytes() == array.tobytes(), name
    assert_same(map_tensors(path)[0], tensors)


def test_a_header_in_its_room_is_never_copied(tmp_path, monkeypatch):
    tensors = {f"base_model.model.layers.{i}.lora_A.weight": np.ones((8, 512)) for i in range(99)}
    monkeypatch.setattr(TensorWriter, "_rewrite", lambda self: pytest.fail("copied"))
    write(tmp_path / "x", tensors, header_room=room_for(tensors), metadata={"format": "pt"})
    assert_same(read_by_library(tmp_path / "x")[0], tensors)


def test_a_header_that_outgrows_its_room_costs_no_tensor(tmp_path):
    tensors = {f"tensor {i}": np.full((i, 7), i, np.float32) for i in range(200)}
    write(tmp_path / "x", tensors, header_room=16)
    assert_same(read_by_library(tmp_path / "x")[0], tensors)


def test_arrays_of_any_layout_are_written(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {"transposed": base.T, "strided": base[::2, ::3], "scalar": np.float64(3.5)}
    write(tmp_path / "x", tensors)
    expected = {name: np.array(x, order="C") for name, x in tensors.items()}
    assert_same(read_by_library(tmp_path / "x")[0], expected)


def test_a_file_is_mapped_and_not_loaded(tmp_path):
    path = write(tmp_path / "x", {"a": np.arange(6, dtype=np.float32), "none": np.zeros((0, 3))})
    tensors, _ = map_tensors(path)
    owner = tensors["a"]
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner.obj if isinstance(owner, memoryview) else owner, mmap.mmap)
    assert not any(x.flags.writeable for x in tensors.values())
    path.unlink()
    assert tensors["a"].tolist() == [0, 1, 2, 3, 4, 5]


def test_tensors_at_odd_addresses_are_read(tmp_path):
    """Files of old writers have headers of any length."""
    path = tmp_path / "x"
    values = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    header = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    assert len(header) % 2 == 1
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    found = map_tensors(path)[0]["x"]
    assert found.astype(np.float32).tolist() == [1.5, -2.0]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_no_file(tmp_path, error):
    with pytest.raises(type(error)), TensorWriter(tmp_path / "x") as writer:  # noqa: PT012
        writer.add("a", np.ones(3))
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["_finish", "_rewrite"])
def test_a_writer_that_fails_on_closing_leaves_no_file(tmp_path, monkeypatch, step):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(TensorWriter, step, full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "x", {"a": np.ones(3)}, header_room=0)
    assert list(tmp_path.iterdir()) == []


def test_half_a_file_is_valid_to_no_reader(tmp_path):
    writer = TensorWriter(tmp_path / "x").__enter__()
    writer.add("a", np.ones(2**16))
    writer._file.flush()
    with pytest.raises(safetensors.SafetensorError):
        read_by_library(tmp_path / "x")
    with pytest.raises(InputError, match="no valid safetensors file"):
        map_tensors(tmp_path / "x")
    writer.__exit__(None)
    assert read_by_library(tmp_path / "x")[0].keys() == {"a"}


def test_a_tensor_that_the_format_cannot_hold_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="a: safetensors holds no complex128"):
        write(tmp_path / "x", {"a": np.ones(2, np.complex128)})
    with pytest.raises(ValueError, match="second tensor 'a'"), TensorWriter(tmp_path / "x") as w:  # noqa: PT012
        w.add("a", np.ones(2))
        w.add("a", np.ones(2))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b"\x00" * 7, "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer.*git lfs"),
        (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "web page"),
        (b"PK\x03\x04\x00\x00\x08\x08 archive/data.pkl", "a pickle of torch"),
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00model", "a pickle, which is never read"),
        (b"GGUF\x03\x00\x00\x00 and so on", "GGUF"),
    ],
)
def test_a_file_of_another_format_is_named_as_such(tmp_path, content, reason):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"model.safetensors: no valid.*{reason}") as error:
        map_tensors(path)
    assert "\n" not in str(error.value)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"a": entry()}, 7, "8 bytes, it has 7"),
        ({"a": entry()}, 9, "8 bytes, it has 9"),
        ({"a": entry(shape=(3,))}, 8, "'a' has 8 bytes, F32.*takes 12"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, 20, "'b' begins at 12.*ends at 8"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "'b' begins at 4.*ends at 8"),
        ({"a": entry(shape=(-2,))}, 8, "'a' is described by"),
        ({"a": entry(shape=(True, 2))}, 8, "'a' is described by"),
        ({"a": entry(offsets=(8, 0))}, 8, "'a' is described by"),
        ({"a": [1]}, 8, "'a' is described by"),
        ({"__metadata__": {"n": 1}}, 0, "metadata"),
        (b'{"a":1,"a":1}', 0, "twice"),
        (b"{oops}", 0, "no JSON"),
        (b'{"\xff":1}', 0, "no JSON"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, data, reason):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(data))
    with pytest.raises(InputError, match=rf"x\.safetensors: no valid.*{reason}"):
        map_tensors(path)
    with pytest.raises(safetensors.SafetensorError):
        read_by_library(path)


def test_every_truncation_is_refused(tmp_path):
    whole = write(tmp_path / "x", {"a": np.ones(3)}, header_room=0).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(InputError, match="no valid safetensors file"):
            map_tensors(tmp_path / "cut")


def test_a_dtype_without_whole_bytes_is_refused(tmp_path):
    header = json.dumps({"w": entry("F4", (4,), (0, 2))}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(InputError, match="x: w has dtype 'F4'; only BF16"):
        map_tensors(tmp_path / "x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: cannot be read \(No such file"):
        map_tensors(tmp_path / "nowhere")
