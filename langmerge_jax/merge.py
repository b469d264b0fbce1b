"""Merges LoRA adapters without data, a base model or a GPU.

  python -m langmerge_jax.merge --adapters=en=DIR,de=DIR,ja=DIR --method=ties_knots \\
      --density=0.5 --output=DIR

merges PEFT adapters into one. A method that is full rank (ties, dare_ties) is folded into full
weights and needs --base, the model's local directory.

  python -m langmerge_jax.merge --config=configs/demo.py --workdir=runs/demo

merges the adapters of a run by every recipe of its config.
"""

import pathlib

from absl import flags

from langmerge_jax import cli
from langmerge_jax.errors import InputError

cli.define_flags()
_ADAPTERS = flags.DEFINE_list("adapters", [], "Adapters as name=directory, separated by commas.")
_METHOD = flags.DEFINE_string("method", "ties_knots", "How to merge; see docs/architecture.md.")
_DENSITY = flags.DEFINE_float("density", None, "Share of entries each adapter keeps, in (0, 1].")
_LAMBDA = flags.DEFINE_float("lambda", 1.0, "Gain on the merged delta.")
_SEED = flags.DEFINE_integer("seed", 0, "Of DARE's masks.")
_WEIGHTS = flags.DEFINE_list("weights", [], "name=number; an adapter not named has weight 1.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory to write, with --adapters.")
_BASE = flags.DEFINE_string("base", None, "Base model's directory, for full-rank methods.")
_CHECK_BASE_NAME = flags.DEFINE_bool(
    "check_base_name", True, "Refuse adapters that name different base models."
)


def main() -> None:
    if not _ADAPTERS.value:
        config, workdir = cli.config_and_workdir()
        # Imported here, so that --help and wrong flags answer at once.
        from langmerge_jax.lifecycle.merging import merge_all
        from langmerge_jax.lifecycle.run import Run

        merge_all(Run(config, workdir))
        print(f"merged adapters: {workdir / 'merged'}")
        return
    if _OUTPUT.value is None:
        raise InputError("--output is missing; name the directory to write")
    _merge_directories(pathlib.Path(_OUTPUT.value))


def _merge_directories(output: pathlib.Path) -> None:
    from langmerge_jax.adapters import Adapter, load_adapter, save_adapter
    from langmerge_jax.merging import merge, parse
    from langmerge_jax.merging.fold import fold_directory

    directories = dict(_pairs("adapters", _ADAPTERS.value))
    weights = {name: _number(name, text) for name, text in _pairs("weights", _WEIGHTS.value)}
    method = _METHOD.value if _DENSITY.value is None else f"{_METHOD.value}@{_DENSITY.value}"
    recipe = parse(f"{method}*{flags.FLAGS['lambda'].value}")
    adapters = {name: load_adapter(directory) for name, directory in directories.items()}
    result = merge(
        adapters,
        recipe,
        weights=dict.fromkeys(adapters, 1.0) | weights,
        seed=_SEED.value,
        check_base_name=_CHECK_BASE_NAME.value,
    )
    if isinstance(result, Adapter):
        save_adapter(output, result)
        rank = max(factors.rank for factors in result.modules.values())
        print(f"merged {len(adapters)} adapters by {recipe.name}: adapter of rank {rank}, {output}")
    elif _BASE.value is None:
        raise InputError(
            f"{recipe.name} is full rank and fits no adapter; give --base to fold it into full "
            "weights, or choose a low-rank method such as ties_knots"
        )
    else:
        fold_directory(pathlib.Path(_BASE.value), result, output)
        print(f"merged {len(adapters)} adapters by {recipe.name}: full model, {output}")


def _pairs(flag: str, entries: list[str]):
    seen = set()
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (name and equals and value):
            raise InputError(f"--{flag}: {entry!r} is not name=value")
        if name in seen:
            raise InputError(f"--{flag}: {name!r} is given twice")
        seen.add(name)
        yield name, value


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--weights: {name}={text!r} is no number") from None


if __name__ == "__main__":
    cli.run(main)
