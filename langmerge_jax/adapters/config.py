"""PEFT's `adapter_config.json`: what it says of a module, and what is not handled in it."""

import collections
import json
import math
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from langmerge_jax.errors import InputError

CONFIG_NAME = "adapter_config.json"

# Settings under which the weight no longer changes by `scale * B @ A` alone.
_FOREIGN_SETTINGS = {
    "use_dora": "DoRA's magnitudes are no low-rank change",
    "lora_bias": "a bias cannot be merged as factors",
    "trainable_token_indices": "trained embeddings are not low-rank",
    "target_parameters": "only linear layers and embeddings are handled, no bare parameters",
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

# PEFT names both for every classifier, whichever of them the model has.
CLASSIFIERS = ("classifier", "score")
_CLASSIFICATION = ("SEQ_CLS", "TOKEN_CLS")


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """Reads the config of a LoRA adapter.

    Raises:
        InputError: If it cannot be read, or says what factors and heads cannot hold.
    """
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
    _refuse_foreign_settings(config, path)
    return config


def rank_and_scale(config: Mapping[str, Any], module: str, path: pathlib.Path) -> tuple[int, float]:
    """The rank of a module and the scale of its delta.

    Raises:
        InputError: If the config of that path gives no numbers for them.
    """
    rank = _setting(config, "r", "rank_pattern", module, path)
    alpha = _setting(config, "lora_alpha", "alpha_pattern", module, path)
    if rank != int(rank) or rank < 1:
        raise InputError(f"{path}: the rank of {module} is {rank}; it must be a whole number >= 1")
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    return int(rank), alpha / divisor


def saved_module(config: Mapping[str, Any], tensor: str) -> str | None:
    """The entry of `modules_to_save` that a tensor is of, by PEFT's rule; None for no head."""
    pieces = tensor.split(".")
    parents = [".".join(pieces[:i]) for i in range(1, len(pieces))]
    for name in config.get("modules_to_save") or ():
        if any(parent.endswith(name) for parent in parents):
            return name
    return None


def check_covered(
    config: Mapping[str, Any], modules: Collection[str], heads: Collection[str], path: pathlib.Path
) -> None:
    """Checks that the tensors which were found are those that the config names.

    Raises:
        InputError: If factors are of a module that `target_modules` does not name, or something
            that the config names for certain is missing.
    """
    target = config.get("target_modules")
    # Factors of a tied module are saved for both of its names, of which the config has one.
    for module in () if config.get("ensure_weight_tying") else modules:
        if not _targets(target, module, path):
            raise InputError(
                f"{path}: target_modules does not name {module}, which has factors; "
                "config and weights are of different adapters"
            )
    # A bare name may be meant for other architectures, a path through a numbered layer is not.
    narrowed = config.get("exclude_modules") or config.get("layers_to_transform") is not None
    for entry in target if isinstance(target, list) and not narrowed else ():
        if re.search(r"\.\d+\.", entry) and not any(_ends_with(x, entry) for x in modules):
            raise InputError(
                f"{path}: target_modules names {entry}, which has no factors; "
                "the weights are incomplete"
            )
    found = {saved_module(config, tensor) for tensor in heads}
    for name in config.get("modules_to_save") or ():
        either = name in CLASSIFIERS and found.intersection(CLASSIFIERS)
        other = any(saved_module({"modules_to_save": [name]}, tensor) for tensor in heads)
        if not either and not other:
            raise InputError(
                f"{path}: modules_to_save names {name!r}, of which there is no tensor; "
                "the weights are incomplete"
            )


def config_of(
    shapes: Mapping[str, tuple[int, float]],
    *,
    base: str | None,
    revision: str | None,
    task_type: str | None,
    heads: Iterable[str],
    fan_in_fan_out: bool,
) -> dict[str, Any]:
    """The config of an adapter.

    Modules of the most common scale and the highest rank are described by `r` and `lora_alpha`,
    the others by patterns.

    Args:
        shapes: Rank and scale by module path.
        base: Name of the base model.
        revision: Its version.
        task_type: PEFT's task name.
        heads: Tensor names of fully trained modules.
        fan_in_fan_out: Whether the base stores weights `[in, out]`.
    """
    rank = max(rank for rank, _ in shapes.values())
    scales = collections.Counter(scale for _, scale in shapes.values())
    alpha = _alpha(scales.most_common(1)[0][0], rank)
    rank_pattern, alpha_pattern = {}, {}
    for module, (module_rank, scale) in shapes.items():
        # PEFT matches keys as patterns that may begin after any dot: anchored and escaped, a key
        # means this module alone.
        key = f"^{re.escape(module)}"
        if module_rank != rank:
            rank_pattern[key] = module_rank
        module_alpha = _alpha(scale, module_rank)
        if module_alpha != alpha:
            alpha_pattern[key] = module_alpha
    return {
        "alpha_pattern": alpha_pattern,
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": _modules_of(heads, task_type) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": rank_pattern,
        "revision": revision,
        # Whole paths: a bare `q_proj` would also name layers that the adapter leaves alone.
        "target_modules": list(shapes),
        "task_type": task_type,
        "use_dora": False,
        "use_rslora": False,
    }


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
    for field in ("target_modules", "modules_to_save"):
        value = config.get(field)
        listed = isinstance(value, list) and all(isinstance(x, str) and x for x in value)
        if not (value is None or listed or (field == "target_modules" and isinstance(value, str))):
            raise InputError(f"{path}: {field} is {value!r}; it must be a list of names")


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


def _targets(target: list[str] | str | None, module: str, path: pathlib.Path) -> bool:
    if target is None or target == "all-linear":
        return True
    if isinstance(target, list):
        return any(_ends_with(module, entry) for entry in target)
    try:
        return re.fullmatch(target, module) is not None
    except re.error as error:
        raise InputError(
            f"{path}: target_modules is {target!r}, no valid pattern ({error})"
        ) from error


def _ends_with(module: str, entry: str) -> bool:
    return module == entry or module.endswith(f".{entry}")


def _modules_of(tensors: Iterable[str], task_type: str | None) -> list[str]:
    """The modules that hold these tensors, none within another."""
    modules = set()
    for tensor in tensors:
        pieces = tensor.split(".")[:-1]
        if task_type in _CLASSIFICATION:
            # PEFT saves and loads the whole of these for such a task, whatever the config says.
            cuts = [i for i, piece in enumerate(pieces, start=1) if piece in CLASSIFIERS]
            pieces = pieces[: cuts[0]] if cuts else pieces
        modules.add(".".join(pieces))
    return sorted(m for m in modules if not any(m.startswith(f"{other}.") for other in modules))


def _alpha(scale: float, rank: int) -> int | float:
    """The `lora_alpha` that gives `scale` at `rank`, whole where a whole number does."""
    alpha = scale * rank
    return round(alpha) if round(alpha) / rank == scale else alpha
