"""Folds a dense delta into a base model's files, one tensor at a time."""

import json
import logging
import pathlib
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from langmerge_jax.adapters.adapter import FLOAT_DTYPES
from langmerge_jax.adapters.writing import Companions
from langmerge_jax.errors import InputError
from langmerge_jax.files import finished_directory
from langmerge_jax.merging.dense import DenseDelta
from langmerge_jax.progress import Progress
from langmerge_jax.tensorfiles import TensorWriter, map_tensors, room_for

logger = logging.getLogger(__name__)

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Weights in other formats, which would stay without the delta.
_OTHER_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ot", ".onnx"}

_BLOCK = 2**22  # Entries that are widened at once.


def fold_directory(
    base: pathlib.Path,
    dense: DenseDelta,
    output: pathlib.Path,
    *,
    transposed: Collection[str] = (),
    heads: Mapping[str, np.ndarray] | None = None,
    companions: Companions | None = None,
) -> None:
    """Writes a copy of a Hugging Face directory whose weights carry the delta.

    Each weight is widened to at least float32, added to, and rounded once to its own dtype.
    Memory holds one weight and what the merge computes ahead. The files keep their names and what
    is in them; weights in other formats than safetensors are left out, and a warning is logged.

    Args:
        base: Directory with `*.safetensors`, of any architecture whose weights are named
            `<module>.weight`, or all of them without the first piece of the path (GPT-2 as
            published).
        dense: Deltas `[out, in]` by module.
        output: Made; it must not exist.
        transposed: Modules whose weight is stored `[in, out]`: embeddings, and all that are
            adapted where `fan_in_fan_out` is set.
        heads: Whole tensors by name that take the place of the base's, in its dtype.
        companions: Texts to write beside, by file name, in place of the base's files of that name;
            a function is called once the modules are through.

    Raises:
        InputError: If `output` exists, a shard cannot be read, or the base lacks a tensor of the
            merge, has it in another shape or has it quantised.
    """
    if output.exists():
        raise InputError(f"{output} exists already; choose another output")
    shards = {path: map_tensors(path) for path in _shards(base)}
    places: dict[str, pathlib.Path] = {}
    weights: dict[str, np.ndarray] = {}
    for path, (tensors, _) in shards.items():
        for name in tensors:
            if name in places:
                raise InputError(f"{path}: {name} is in {places[name].name} too; remove either")
            places[name] = path
        weights |= tensors
    config = _config(base)
    targets = _targets(dense.modules, weights, base, config)
    for name, module in targets.items():
        out, in_ = dense.modules[module]
        shape = (in_, out) if module in transposed else (out, in_)
        _check(f"{places[name]}: {name}", weights[name], shape)
        if module in transposed and _is_output_too(weights, name, config):
            logger.warning(
                "%s is the output head as well (tie_word_embeddings): both change by its delta",
                name,
            )
    heads = heads or {}
    for name, head in heads.items():
        if name not in weights:
            raise InputError(f"{base}: has no {name}; a head that the base lacks cannot be folded")
        _check(f"{places[name]}: {name}", weights[name], head.shape)

    # In the order of the files, so that the merge can work ahead of their writing.
    deltas = dense.items([targets[name] for name in weights if name in targets], in_order=True)
    with finished_directory(output) as directory:
        _copy_others(base, directory, {path.name for path in shards})
        with Progress("fold", len(targets), "module") as progress:
            for path, (tensors, metadata) in shards.items():
                with TensorWriter(
                    directory / path.name, header_room=room_for(tensors), metadata=metadata
                ) as writer:
                    for name, weight in tensors.items():
                        if name in targets:
                            module, delta = next(deltas)
                            weight = _added(weight, delta.T if module in transposed else delta)
                            progress.update()
                        elif name in heads:
                            weight = heads[name].astype(weight.dtype)
                        writer.add(name, weight)
        # Lets the merge do what it does after its last module.
        next(deltas, None)
        texts = companions() if callable(companions) else companions or {}
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8")


def _shards(base: pathlib.Path) -> list[pathlib.Path]:
    """The files that transformers loads: one, those of the index, or else all."""
    whole, index = base / _WHOLE, base / _INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index}: no valid index of shards ({error!r})") from error
        return [base / pathlib.PurePath(name).name for name in sorted(names)]
    if not (found := sorted(base.glob("*.safetensors"))):
        raise InputError(f"{base}: a base without weights; it has no *.safetensors")
    return found


def _config(base: pathlib.Path) -> dict[str, Any]:
    path = base / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path}: no valid JSON ({error})") from error


def _targets(
    modules: Collection[str],
    weights: Collection[str],
    base: pathlib.Path,
    config: Mapping[str, Any],
) -> dict[str, str]:
    """Modules by the name of the weight that their delta belongs to."""
    stems = {module: module for module in modules}
    firsts = {module.partition(".")[0] for module in modules}
    known = (f"{module}.{kind}" for module in modules for kind in ("weight", "qweight"))
    if len(firsts) == 1 and not any(name in weights for name in known):
        stems = {module: module.partition(".")[2] for module in modules}
    for module, stem in stems.items():
        if f"{stem}.weight" in weights:
            continue
        if f"{stem}.qweight" in weights:
            raise InputError(
                f"{base}: {module} is quantised (qweight); fold into the unquantised base"
            )
        # transformers ties them unless the config says otherwise.
        tied = config.get("tie_word_embeddings", bool(config))
        if module.rpartition(".")[2] == "lm_head" and tied:
            raise InputError(
                f"{base}: has no {module}.weight, its embedding is its head (tie_word_embeddings); "
                "a delta of the head cannot be folded: use the adapter, or a base with its own head"
            )
        raise InputError(
            f"{base}: has no weight for {module}; the adapters were made for another base"
        )
    return {f"{stem}.weight": module for module, stem in stems.items()}


def _is_output_too(weights: Mapping[str, np.ndarray], name: str, config: Mapping[str, Any]) -> bool:
    tied = config.get("tie_word_embeddings", False) and "lm_head.weight" not in weights
    return bool(tied) and len(weights[name]) == config.get("vocab_size")


def _check(where: str, weight: np.ndarray, shape: tuple[int, ...]) -> None:
    if weight.dtype not in FLOAT_DTYPES:
        raise InputError(f"{where} is quantised ({weight.dtype}); fold into the unquantised base")
    if weight.shape != tuple(shape):
        raise InputError(
            f"{where} has shape {list(weight.shape)}, the merge {list(shape)}; "
            "the adapters were made for another base"
        )


def _added(weight: np.ndarray, delta: np.ndarray) -> np.ndarray:
    wide = np.result_type(np.promote_types(weight.dtype, np.float32), delta.dtype)
    result = np.empty(weight.shape, weight.dtype)
    rows = max(1, _BLOCK // weight.shape[1])
    for start in range(0, len(weight), rows):
        block = slice(start, start + rows)
        result[block] = weight[block].astype(wide) + delta[block]
    return result


def _copy_others(base: pathlib.Path, directory: pathlib.Path, shards: Collection[str]) -> None:
    left = []
    for path in sorted(base.iterdir()):
        if not path.is_file() or path.name in shards:
            continue
        unused = path.name == _INDEX and _WHOLE in shards
        if path.suffix in _OTHER_WEIGHTS or path.name.endswith(".bin.index.json") or unused:
            left.append(path.name)
        else:
            shutil.copy2(path, directory / path.name)
    if left:
        logger.warning("%s: left out %s, which would not carry the delta", base, ", ".join(left))
