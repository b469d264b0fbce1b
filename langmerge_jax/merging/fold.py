"""Folds a dense delta into a base model's files, one shard at a time."""

import pathlib
import shutil

import ml_dtypes  # noqa: F401 (numpy learns bfloat16 from it)
import numpy as np
import safetensors
import safetensors.numpy

from langmerge_jax.errors import InputError
from langmerge_jax.files import finished_directory
from langmerge_jax.merging.dense import DenseDelta


def fold_directory(base: pathlib.Path, dense: DenseDelta, output: pathlib.Path) -> None:
    """Writes a copy of a Hugging Face directory whose weights carry the delta.

    Each weight is widened to at least float32, added to, and rounded once to its own dtype.
    Memory holds one shard and one module's delta.

    Args:
      base: directory with `*.safetensors`, of any architecture whose weights are named
        `<module>.weight`.
      dense: deltas [out, in] by module.
      output: made; it must not exist.

    Raises:
      InputError: if `output` exists, a shard cannot be read, or the base lacks a module of the
        merge or has it in another shape.
    """
    if output.exists():
        raise InputError(f"{output} exists already; choose another output")
    shards = sorted(base.glob("*.safetensors"))
    if not shards:
        raise InputError(f"{base}: a base without weights; it has no *.safetensors")
    missing = set(dense.modules)
    with finished_directory(output) as directory:
        for path in base.iterdir():
            if path.is_file() and path.suffix != ".safetensors":
                shutil.copy2(path, directory / path.name)
        for shard in shards:
            tensors, metadata = _read(shard)
            for name in tensors:
                module = name.removesuffix(".weight")
                if module in missing:
                    tensors[name] = _added(tensors[name], dense.delta(module), f"{shard}: {name}")
                    missing.discard(module)
            safetensors.numpy.save_file(tensors, directory / shard.name, metadata=metadata)
        if missing:
            raise InputError(
                f"{base}: has no weight for {min(missing)} and {len(missing) - 1} other modules of "
                "the merge; the adapters were made for another base"
            )


def _read(shard: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str] | None]:
    try:
        with safetensors.safe_open(shard, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{shard}: cannot be read, perhaps truncated ({error})") from error


def _added(weight: np.ndarray, delta: np.ndarray, where: str) -> np.ndarray:
    if weight.shape != delta.shape:
        raise InputError(
            f"{where} has shape {list(weight.shape)}, the merge {list(delta.shape)}; "
            "the adapters were made for another base"
        )
    return (weight.astype(np.promote_types(delta.dtype, np.float32)) + delta).astype(weight.dtype)
