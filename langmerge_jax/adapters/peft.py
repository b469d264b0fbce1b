"""Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

What PEFT 0.18 to 0.21 and vLLM write is read, and they read what is written here. A file that
says more than `scale * B @ A` can hold is refused, never read in part.
"""

import collections
import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from langmerge_jax.adapters.adapter import Adapter, Factors
from langmerge_jax.errors import InputError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

# Tensors of LoRA's relatives, by a piece of their name, to say what was found.
_FOREIGN_TENSORS = {
    "lora_embedding_": "a LoRA factor of an embedding",
    "lora_magnitude_vector": "DoRA's magnitude vector",
    "lora_B.bias": "a bias of lora_B",
    "modules_to_save": "a fully trained module",
    # PEFT copies these where lm_head or the embedding is targeted or its vocabulary was resized.
    ".base_layer.weight": "a copy of a base weight (save again with save_embedding_layers=False)",
}

# Settings under which the weight no longer changes by `scale * B @ A` alone.
_FOREIGN_SETTINGS = {
    "use_dora": "DoRA's magnitudes are no low-rank change",
    "lora_bias": "a bias cannot be merged as factors",
    "fan_in_fan_out": "weights stored [in, out] are not handled",
    "modules_to_save": "fully trained modules are not low-rank",
    "trainable_token_indices": "trained embeddings are not low-rank",
    "target_parameters": "only linear layers are handled, no bare parameters",
    "layer_replication": "the layers of the base model are copied, so module paths mean others",
    "alora_invocation_tokens": "activated LoRA changes the weight for some tokens only",
    "use_qalora": "QA-LoRA pools its input",
    "use_bdlora": "block-diagonal LoRA stores its factors in another form",
    "arrow_config": "Arrow routes between adapters",
    "kasa_config": "KaSA changes the base weight as well",
    "monteclora_config": "MonteCLoRA draws its factors at random",
}

# Settings of this form that concern training or placement only; any other `use_*` or `*_config`
# that is set is a variant that PEFT had not named when this was written, and is refused.
_HARMLESS_SETTINGS = {
    "use_rslora",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_config",
    "runtime_config",
    "velora_config",
}

# These initialisations move part of the base weight into the adapter, so the stored factors are a
# change of that residual weight and not of the base model that the config names.
_RESIDUAL_INITS = ("pissa", "corda", "olora", "loftq", "lora_ga")


def load_adapter(directory: str | os.PathLike[str]) -> Adapter:
    """Reads an adapter in PEFT's format.

    Factors keep the dtype they are stored in. Rank and scale follow `r`, `lora_alpha`,
    `rank_pattern`, `alpha_pattern` and `use_rslora` as PEFT reads them.

    Args:
        directory: The directory that holds `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The adapter.

    Raises:
        InputError: If a file is missing or broken, or holds what an `Adapter` cannot.
    """
    directory = pathlib.Path(directory)
    config_path = directory / CONFIG_NAME
    config = _read_config(config_path)
    _refuse_foreign_settings(config, config_path)
    weights_path = directory / WEIGHTS_NAME
    pairs = _read_factors(weights_path)

    modules = {}
    for module, pair in pairs.items():
        for side in "AB":
            if side not in pair:
                raise InputError(
                    f"{weights_path}: {module} has no lora_{side}.weight; the file is incomplete"
                )
        rank, scale = _rank_and_scale(config, module, config_path)
        try:
            factors = Factors(a=pair["A"], b=pair["B"], scale=scale)
        except InputError as error:
            raise InputError(f"{weights_path}: {module}: {error}") from error
        if factors.rank != rank:
            raise InputError(
                f"{weights_path}: {module} has rank {factors.rank}, {CONFIG_NAME} says {rank}; "
                "config and weights are of different adapters"
            )
        modules[module] = factors
    return Adapter(
        modules,
        base=config.get("base_model_name_or_path") or None,
        revision=config.get("revision"),
        task_type=config.get("task_type"),
    )


def save_adapter(directory: str | os.PathLike[str], adapter: Adapter) -> None:
    """Writes an adapter in PEFT's format, all of it or nothing.

    Modules of the most common scale and the highest rank are described by `r` and `lora_alpha`,
    the others by `rank_pattern` and `alpha_pattern`. vLLM reads `r` and `lora_alpha` only; so an
    adapter of one scale, whatever its ranks, means the same there, and one of several scales does
    not.

    Args:
        directory: Where to write. It may exist only if it is empty or holds an adapter and
            nothing else; the adapter is then replaced.
        adapter: What to write. Factors keep their dtype.

    Raises:
        InputError: If `directory` exists and is something else.
    """
    # A link is followed, so that it goes on pointing where it did.
    directory = pathlib.Path(directory).resolve()
    _refuse_other_contents(directory)
    tensors = {}
    for module, factors in adapter.modules.items():
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(factors.a)
        tensors[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(factors.b)
    with _replacing(directory) as fresh:
        (fresh / CONFIG_NAME).write_text(
            json.dumps(_config_of(adapter), indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        # transformers reads the "format" entry to know the layout; PEFT itself writes "pt".
        safetensors.numpy.save_file(tensors, fresh / WEIGHTS_NAME, metadata={"format": "pt"})


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give the directory of a PEFT adapter"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: no valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds a {type(config).__name__}; it must hold one JSON object")
    return config


def _refuse_foreign_settings(config: Mapping[str, Any], path: pathlib.Path) -> None:
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise InputError(f"{path}: peft_type is {peft_type!r}; only 'LORA' is handled")
    if config.get("bias", "none") != "none":
        raise InputError(
            f"{path}: bias is {config['bias']!r}; trained biases cannot be merged as factors"
        )
    for field, reason in _FOREIGN_SETTINGS.items():
        if config.get(field):
            raise InputError(f"{path}: {field} is {config[field]!r}; {reason}")
    for field, value in config.items():
        is_variant = field.startswith("use_") or field.endswith("_config")
        if is_variant and value and field not in _HARMLESS_SETTINGS:
            raise InputError(
                f"{path}: {field} is {value!r}; this variant of LoRA is not known here"
            )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_RESIDUAL_INITS):
        raise InputError(
            f"{path}: init_lora_weights is {init!r}, so the factors change a residual of the base "
            "model; save it again with PEFT's path_initial_model_for_weight_conversion"
        )


def _read_factors(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    if not path.is_file():
        pickled = path.with_name("adapter_model.bin")
        hint = (
            f"{pickled.name} is a pickle, which is never read; save it again as safetensors"
            if pickled.exists()
            else "the adapter is incomplete"
        )
        raise InputError(f"{path}: no such file; {hint}")
    pairs: dict[str, dict[str, np.ndarray]] = {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118, the handle is no mapping
                match = _TENSOR.fullmatch(key)
                if match is None:
                    kinds = (kind for piece, kind in _FOREIGN_TENSORS.items() if piece in key)
                    raise InputError(
                        f"{path}: tensor {key!r} is {next(kinds, 'no LoRA factor')}; only "
                        "base_model.model.<module>.lora_A.weight and lora_B.weight are handled"
                    )
                pairs.setdefault(match["module"], {})[match["side"]] = file.get_tensor(key)
    except (safetensors.SafetensorError, OSError, TypeError) as error:
        # TypeError: a dtype that numpy does not know.
        raise InputError(
            f"{path}: no valid safetensors file ({error}); copy the adapter again"
        ) from error
    if not pairs:
        raise InputError(f"{path}: holds no tensors; the adapter is incomplete")
    return pairs


def _rank_and_scale(
    config: Mapping[str, Any], module: str, path: pathlib.Path
) -> tuple[int, float]:
    rank = _setting(config, "r", "rank_pattern", module, path)
    alpha = _setting(config, "lora_alpha", "alpha_pattern", module, path)
    if rank != int(rank) or rank < 1:
        raise InputError(f"{path}: the rank of {module} is {rank}; it must be a whole number >= 1")
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    return int(rank), alpha / divisor


def _setting(
    config: Mapping[str, Any], field: str, pattern_field: str, module: str, path: pathlib.Path
) -> float:
    """A number for one module: that of the first pattern which matches, as PEFT takes it."""
    value, source = config.get(field), field
    patterns = config.get(pattern_field) or {}
    if not isinstance(patterns, dict):
        raise InputError(f"{path}: {pattern_field} is {patterns!r}; it must be an object")
    for pattern, override in patterns.items():
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise InputError(
                f"{path}: {pattern_field} has the key {pattern!r}, no valid pattern ({error})"
            ) from error
        if matches:
            value, source = override, f"{pattern_field}[{pattern!r}]"
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{path}: {source} is {value!r}; it must be a number")
    return value


def _config_of(adapter: Adapter) -> dict[str, Any]:
    rank = max(factors.rank for factors in adapter.modules.values())
    scales = collections.Counter(factors.scale for factors in adapter.modules.values())
    alpha = _alpha(scales.most_common(1)[0][0], rank)
    rank_pattern, alpha_pattern = {}, {}
    for module, factors in adapter.modules.items():
        # PEFT matches keys as patterns that may begin after any dot: anchored and escaped, a key
        # means this module alone.
        key = f"^{re.escape(module)}"
        if factors.rank != rank:
            rank_pattern[key] = factors.rank
        module_alpha = _alpha(factors.scale, factors.rank)
        if module_alpha != alpha:
            alpha_pattern[key] = module_alpha
    return {
        "alpha_pattern": alpha_pattern,
        "auto_mapping": None,
        "base_model_name_or_path": adapter.base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": rank_pattern,
        "revision": adapter.revision,
        # Whole paths: a bare `q_proj` would also name layers that the adapter leaves alone.
        "target_modules": list(adapter.modules),
        "task_type": adapter.task_type,
        "use_dora": False,
        "use_rslora": False,
    }


def _alpha(scale: float, rank: int) -> int | float:
    """The `lora_alpha` that gives `scale` at `rank`, whole where a whole number does."""
    alpha = scale * rank
    return round(alpha) if round(alpha) / rank == scale else alpha


def _refuse_other_contents(directory: pathlib.Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InputError(f"{directory}: is a file; give a directory to write the adapter to")
    contents = sorted(entry.name for entry in directory.iterdir())
    others = [name for name in contents if name not in (CONFIG_NAME, WEIGHTS_NAME)]
    if contents and (others or CONFIG_NAME not in contents):
        raise InputError(
            f"{directory}: holds {(others or contents)[0]!r}, which replacing it by an adapter "
            "would delete; give another directory"
        )


@contextlib.contextmanager
def _replacing(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new directory to fill, which takes the place of `directory` when the block succeeds."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        # A child of the private work directory gets the permissions that the user's umask gives.
        fresh = work / "new"
        fresh.mkdir()
        yield fresh
        old = work / "old"
        if directory.exists():
            directory.rename(old)
        try:
            fresh.rename(directory)
        except OSError:
            if old.exists():
                old.rename(directory)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
