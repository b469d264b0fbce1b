"""Folds a dense delta into a base model's files, one tensor at a time."""

import json
import logging
import pathlib
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from langmerge_jax.adapters.adapter import FLOAT_DTYPES, count_not_finite
from langmerge_jax.adapters.writing import Companions
from langmerge_jax.errors import InputError
from langmerge_jax.files import finished_directory
from langmerge_jax.merging.dense import DenseDelta
from langmerge_jax.progress import Progress
from langmerge_jax.tensorfiles import (
    INDEX,
    WHOLE,
    TensorWriter,
    map_tensors,
    room_for,
    weight_files,
)

logger = logging.getLogger(__name__)

# Weights in other formats, which would stay without the delta.
_OTHER_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ot", ".onnx"}

_BLOCK = 2**22  # Entries that are widened at once.


def fold_directory(
    base: pathlib.Path,
    dense: DenseDelta,
    output: pathlib.Path,
    *,
    companions: Companions | None = None,
) -> None:
    """Writes a copy of a Hugging Face directory whose weights carry the delta.

    Each weight is widened to at least float32, added to, and rounded once to its own dtype.
    Memory holds one weight and what the merge computes ahead. The files keep their names and what
    is in them; weights in other formats than safetensors and directories are left out, and a
    warning is logged.

    Args:
        base: Directory with `*.safetensors`, of any architecture whose weights are named
            `<module>.weight`, or all of them without the first piece of the path (GPT-2 as
            published).
        dense: The merge; its heads take the place of the base's tensors, in the base's dtype.
        output: Made; it must not exist, or be empty.
        companions: Texts to write beside, by file name, in place of the base's files of that name;
            a function is called once the modules are through.

    Raises:
        InputError: If `output` holds something, a shard cannot be read, the base lacks a tensor of
            the merge, has it in another shape or has it quantised, or its dtype is too narrow for
            the result.
    """
    refuse_contents(output)
    shards = {path: map_tensors(path) for path in weight_files(base)}
    places: dict[str, pathlib.Path] = {}
    weights: dict[str, np.ndarray] = {}
    for path, (tensors, _) in shards.items():
        for name in tensors:
            if name in places:
                raise InputError(f"{path}: {name} is in {places[name].name} too; remove either")
            places[name] = path
        weights |= tensors
    config, transposed = _config(base), dense.transposed
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
    for name, head in dense.heads.items():
        if name not in weights:
            raise InputError(f"{base}: has no {name}; a head that the base lacks cannot be folded")
        _check(f"{places[name]}: {name}", weights[name], head.shape)

    # In the order of the files, so that the merge can work ahead of their writing.
    deltas = dense.items([targets[name] for name in weights if name in targets], in_order=True)
    with finished_directory(output, check=refuse_contents) as directory:
        _copy_others(base, directory, {path.name for path in shards})
        with Progress("fold", len(targets), "module") as progress:
            for path, (tensors, metadata) in shards.items():
                with TensorWriter(
                    directory / path.name, header_room=room_for(tensors), metadata=metadata
                ) as writer:
                    for name, weight in tensors.items():
                        if name in targets:
                            module, delta = next(deltas)
                            added = _added(weight, delta.T if module in transposed else delta)
                            weight = _finite(f"{path}: {name}", weight, added)
                            progress.update()
                        elif name in dense.heads:
                            head = dense.heads[name]
                            weight = _finite(f"{path}: {name}", head, _cast(head, weight.dtype))
                        writer.add(name, weight)
        # Lets the merge do what it does after its last module.
        next(deltas, None)
        texts = companions() if callable(companions) else companions or {}
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8")


def refuse_contents(output: pathlib.Path) -> None:
    """Raises InputError if a directory holds anything."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output} exists already; choose another output")


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
        with np.errstate(over="ignore"):  # `_finite` refuses it.
            result[block] = weight[block].astype(wide) + delta[block]
    return result


def _cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def _finite(where: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns `after`, what the merge makes of `before`, if every value is a number."""
    found = count_not_finite(after)
    if not found:
        return after
    if already := count_not_finite(before):
        raise InputError(
            f"{where} holds {already} NaN or infinite values of {before.size} before the merge is "
            "added; get the base again"
        )
    raise InputError(
        f"{where} would hold {found} values of {after.size} beyond the range of {after.dtype}; "
        "fold into a copy of the base in bfloat16 or float32, or merge with a smaller lambda"
    )


def _copy_others(base: pathlib.Path, directory: pathlib.Path, shards: Collection[str]) -> None:
    left, folders = [], []
    for path in sorted(base.iterdir()):
        if path.name in shards:
            continue
        if not path.is_file():
            # The output may lie within the base.
            if path.resolve() != directory:
                folders.append(path.name)
            continue
        unused = path.name == INDEX and WHOLE in shards
        if path.suffix in _OTHER_WEIGHTS or path.name.endswith(".bin.index.json") or unused:
            left.append(path.name)
        else:
            shutil.copy2(path, directory / path.name)
    if left:
        logger.warning("%s: left out %s, which would not carry the delta", base, ", ".join(left))
    if folders:
        logger.warning(
            "%s: left out %s, as only files are copied; copy what the model needs",
            base,
            ", ".join(f"{name}/" for name in folders),
        )
