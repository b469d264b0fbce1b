"""Safetensors files larger than memory: mapped when read, written tensor by tensor.

The format is eight bytes with the length of a header, the header in JSON, and the tensors' bytes
one after another: https://huggingface.co/docs/safetensors.
"""

import contextlib
import json
import math
import mmap
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from langmerge_jax.errors import InputError

# The weights of a Hugging Face directory: one file, or several and an index.
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"

DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BF16": ml_dtypes.bfloat16,
        "F16": np.float16,
        "F32": np.float32,
        "F64": np.float64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "C64": np.complex64,
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
    }.items()
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Names the format has for something else than a tensor.
_METADATA = "__metadata__"

# What is often found under a name that ends in .safetensors, by its first bytes.
_FOREIGN = {
    b"version https://git-lfs": "it is a Git LFS pointer; fetch the file itself with git lfs pull",
    b"<!doctype": "it is a web page; download the file itself",
    b"<html": "it is a web page; download the file itself",
    b"PK\x03\x04": "it is a pickle of torch; save it again as safetensors",
    b"\x80\x02": "it is a pickle, which is never read; save it again as safetensors",
    b"\x80\x03": "it is a pickle, which is never read; save it again as safetensors",
    b"\x80\x04": "it is a pickle, which is never read; save it again as safetensors",
    b"GGUF": "it is a GGUF file; get the safetensors",
}

_COPY_BYTES = 2**24


def map_tensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Maps a safetensors file into memory; a tensor's bytes are read when they are used.

    Args:
        path: The file. Replacing it leaves the arrays as they are; writing into it does not.

    Returns:
        Read-only arrays by name, in the order in which they lie in the file, and the file's
        metadata.

    Raises:
        InputError: If the file cannot be read, is truncated or is of another format.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                entries, metadata, start = _read_header(file, size)
            except ValueError as error:
                raise InputError(f"{path}: no valid safetensors file ({error})") from None
            # A mapping outlives its file's handle and lives as long as an array that looks at it.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    tensors = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise InputError(
                f"{path}: {name} has dtype {entry['dtype']!r}; only {', '.join(DTYPES)} are read"
            )
        tensors[name] = _view(mapped, entry, start)
    return tensors, metadata


def weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files of weights that transformers loads: one, those of the index, or else all.

    Raises:
        InputError: If there is none, or the index is not valid.
    """
    whole, index = directory / WHOLE, directory / INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index}: no valid index of shards ({error!r})") from error
        return [directory / pathlib.PurePath(name).name for name in sorted(names)]
    if not (found := sorted(directory.glob("*.safetensors"))):
        raise InputError(f"{directory}: a base without weights; it has no *.safetensors")
    return found


def room_for(names: Iterable[str]) -> int:
    """Bytes that the header of tensors of these names takes at most, of any shape that is usual."""
    return sum(len(json.dumps(name)) + 160 for name in names)


class TensorWriter:
    """Writes one safetensors file tensor by tensor and holds none of them.

    The header is the first thing in the file and the last to be known, so room is left for it.
    Where it outgrows that room, or where mixed dtypes leave a tensor at an address that is no
    multiple of its item size (so that readers could not use it in place), the file is copied once
    more on closing. Until the block has ended well no reader takes the file for valid; if it ends
    with an error, the file is removed.

    Args:
        path: The file to write; one that exists is overwritten.
        header_room: Bytes to leave for the header, such as `room_for(names)`.
        metadata: The file's metadata.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        header_room: int = 2**18,
        metadata: Mapping[str, str] | None = None,
    ):
        self._path = pathlib.Path(path)
        self._metadata = dict(metadata or {})
        self._room = _padded(header_room + len(_encoded({}, self._metadata)))
        self._entries: dict[str, dict[str, Any]] = {}
        self._end = 0

    def __enter__(self) -> "TensorWriter":
        self._file = self._path.open("wb+")
        # A header of length zero, which no reader accepts.
        self._file.write(bytes(8))
        self._file.seek(8 + self._room)
        return self

    def __exit__(self, kind, *_):
        try:
            with self._file:
                if kind is None:
                    self._finish()
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise
        if kind is not None:
            self._path.unlink(missing_ok=True)

    def add(self, name: str, array: np.ndarray) -> None:
        """Writes one tensor; its bytes are in the file's buffers when this returns.

        Raises:
            TypeError: If safetensors has no name for the dtype.
            ValueError: If there is a tensor of that name already.
        """
        array = np.asarray(array)
        if array.dtype not in _NAMES:
            raise TypeError(f"{name}: safetensors holds no {array.dtype}")
        if name in self._entries or name == _METADATA:
            raise ValueError(f"a second tensor {name!r} in {self._path}")
        start = self._end
        self._file.write(_bytes_of(array))
        self._end += array.nbytes
        self._entries[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, self._end],
        }

    def _finish(self) -> None:
        header = _encoded(self._entries, self._metadata)
        if len(header) <= self._room and not any(map(_misplaced, self._entries.values())):
            _write_header(self._file, header, self._room)
        else:
            self._rewrite()

    def _rewrite(self) -> None:
        """Copies the file with a header that fits, wide dtypes first so that none is misplaced."""
        order = sorted(self._entries, key=lambda name: -_item_size(self._entries[name]))
        moved, end = {}, 0
        for name in order:
            start, stop = self._entries[name]["data_offsets"]
            offsets = [end, end + stop - start]
            moved[name] = self._entries[name] | {"data_offsets": offsets}
            end = offsets[1]
        header = _encoded(moved, self._metadata)
        aside = self._path.with_name(f".{self._path.name}.unfinished")
        try:
            with aside.open("wb") as copy:
                _write_header(copy, header, _padded(len(header)))
                for name in order:
                    start, stop = self._entries[name]["data_offsets"]
                    self._file.seek(8 + self._room + start)
                    _copy(self._file, copy, stop - start)
            os.replace(aside, self._path)
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


def _read_header(
    file: BinaryIO, size: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str], int]:
    """Entries by name, metadata and where the data begins; ValueError says what is wrong."""
    first = file.read(64)
    length = int.from_bytes(first[:8], "little")
    if size < 8 or length > size - 8 or first[8:9] != b"{":
        for beginning, kind in _FOREIGN.items():
            if first.lstrip().lower().startswith(beginning.lower()):
                raise ValueError(kind)
        raise ValueError(
            f"its {size} bytes do not hold the header they announce: truncated, or another format"
        )
    file.seek(8)
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop(_METADATA, {}) or {}
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError("its metadata is no object of strings")
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(*item)):
        start, stop = entry["data_offsets"]
        if start != end:
            raise ValueError(f"tensor {name!r} begins at {start}, the one before ends at {end}")
        count = math.prod(entry["shape"])
        if entry["dtype"] in DTYPES and stop - start != count * _item_size(entry):
            raise ValueError(
                f"tensor {name!r} has {stop - start} bytes, "
                f"{entry['dtype']} {entry['shape']} takes {count * _item_size(entry)}"
            )
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"its tensors take {end} bytes, it has {size - 8 - length}: truncated?")
    return header, metadata, 8 + length


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    """The offsets of an entry that is checked to have the form of one."""
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    whole = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not (
        whole
        and isinstance(fields.get("dtype"), str)
        and all(type(x) is int and x >= 0 for x in shape + offsets)
        and offsets[0] <= offsets[1]
    ):
        raise ValueError(f"tensor {name!r} is described by {entry!r}")
    return offsets[0], offsets[1]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _view(mapped: mmap.mmap, entry: Mapping[str, Any], start: int) -> np.ndarray:
    dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
    count = math.prod(shape)
    if not count:
        empty = np.empty(shape, dtype)
        empty.flags.writeable = False
        return empty
    offset = start + entry["data_offsets"][0]
    return np.frombuffer(mapped, dtype, count=count, offset=offset).reshape(shape)


def _encoded(entries: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, str]) -> bytes:
    header = {_METADATA: metadata} if metadata else {}
    return json.dumps(header | dict(entries), separators=(",", ":")).encode()


def _write_header(file: BinaryIO, header: bytes, room: int) -> None:
    file.seek(0)
    file.write(room.to_bytes(8, "little") + header.ljust(room))


def _padded(length: int) -> int:
    """Room for a header after which the data begins at a multiple of 8."""
    return -(-length // 8) * 8


def _item_size(entry: Mapping[str, Any]) -> int:
    return DTYPES[entry["dtype"]].itemsize


def _misplaced(entry: Mapping[str, Any]) -> bool:
    return entry["data_offsets"][0] % _item_size(entry) != 0


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        block = source.read(min(count, _COPY_BYTES))
        if not block:
            raise OSError(f"{count} bytes are missing from a file that was just written")
        target.write(block)
        count -= len(block)
