"""Merges LoRA adapters without data, a base model or a GPU.

  python -m langmerge_jax.merge --adapters=en=DIR,de=DIR,ja=DIR --method=ties_knots \\
      --density=0.5 --output=DIR

merges PEFT adapters into one. A method that is full rank (ties, dare_ties) needs --rank, such as
64 or 0.95 of the energy, to become an adapter, or --base, the model's local directory, to be folded
into full weights. docs/merging.md tells all methods and options.

  python -m langmerge_jax.merge --config=configs/demo.py --workdir=runs/demo

merges the adapters of a run by every recipe of its config.
"""

import pathlib

from absl import flags

from langmerge_jax import cli
from langmerge_jax.errors import InputError

cli.define_flags()
_ADAPTERS = flags.DEFINE_list("adapters", [], "Adapters as name=directory, separated by commas.")
_METHOD = flags.DEFINE_string(
    "method", "ties_knots", "How to merge, with options: ties_knots, or ties,scope=global."
)
_DENSITY = flags.DEFINE_float("density", None, "Share of entries each adapter keeps, in (0, 1].")
_LAMBDA = flags.DEFINE_float("lambda", 1.0, "Gain on the merged delta.")
_RANK = flags.DEFINE_string(
    "rank", None, "Of the result: exact, a number, inputs (their highest), or a share of energy."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of random masks.")
_WEIGHTS = flags.DEFINE_list(
    "weights",
    [],
    "name=number, name=first..last over the layers, or name:module pattern=either; 1 by default.",
)
_MISSING = flags.DEFINE_enum(
    "missing", "refuse", ["refuse", "zero"], "What a module means that some adapters lack."
)
_HEADS = flags.DEFINE_string(
    "heads", "refuse", "Fully trained modules: refuse, average, or from=<adapter>."
)
_ALLOW_BASE_MISMATCH = flags.DEFINE_bool(
    "allow_base_mismatch", False, "Merge adapters that name different base models."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16"], "Of the result; the inputs' widest if unset."
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory to write, with --adapters.")
_BASE = flags.DEFINE_string("base", None, "Base model's directory: writes a full model.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what it will take, and write nothing.")


def main() -> None:
    if _ADAPTERS.value:
        _merge_directories()
        return
    config, workdir = cli.config_and_workdir()
    # Imported here, so that --help and wrong flags answer at once.
    from langmerge_jax.lifecycle.merging import merge_all
    from langmerge_jax.lifecycle.run import Run

    merge_all(Run(config, workdir))
    print(f"merged adapters: {workdir / 'merged'}")


def _merge_directories() -> None:
    sources = {name: pathlib.Path(value) for name, value in _pairs(_ADAPTERS.value)}
    if _OUTPUT.value is None and not _DRY_RUN.value:
        raise InputError("--output is missing; name the directory to write")
    from langmerge_jax.adapters import load_adapter
    from langmerge_jax.lifecycle.writing import write_merged_adapter, write_merged_model
    from langmerge_jax.merging import Merge, parse
    from langmerge_jax.merging.plan import plan
    from langmerge_jax.merging.weights import read_weights

    recipe = parse(_recipe())
    if recipe.full_rank and _BASE.value is None:
        raise InputError(
            f"{recipe.name} is full rank and fits no adapter; give --rank, such as 64 or 0.95, to "
            "truncate it, --base to fold it into full weights, or a low-rank method such as "
            "ties_knots"
        )
    ready = Merge(
        {name: load_adapter(directory) for name, directory in sources.items()},
        recipe,
        weights=read_weights(_WEIGHTS.value, list(sources)),
        seed=_SEED.value,
        missing=_MISSING.value,
        heads=_HEADS.value,
        allow_base_mismatch=_ALLOW_BASE_MISMATCH.value,
        dtype=_DTYPE.value,
    )
    if _DRY_RUN.value:
        from langmerge_jax.reporting.card import plan_table

        print(plan_table(plan(ready), f"Plan of {recipe.name}; nothing is written").text())
        return
    output, done = pathlib.Path(_OUTPUT.value), f"merged {len(sources)} adapters by {recipe.name}"
    if _BASE.value is not None:
        write_merged_model(ready, sources, pathlib.Path(_BASE.value), output)
        print(f"{done}: full model, {output}")
        return
    facts = write_merged_adapter(ready, sources, output)
    if facts["energy"] is not None:
        print(f"truncated: {facts['energy']:.4f} of the energy is kept")
    print(f"{done}: adapter of rank {facts['rank']}, {output}")


def _recipe() -> str:
    """The text of a recipe that method, density, lambda and rank make together."""
    method, *options = _METHOD.value.split(",")
    if _DENSITY.value is not None:
        method += f"@{_DENSITY.value}"
    if flags.FLAGS["lambda"].value != 1:
        method += f"*{flags.FLAGS['lambda'].value}"
    if _RANK.value is not None:
        options = [option for option in options if not option.startswith("rank=")]
        options.append(f"rank={_RANK.value}")
    return ",".join([method, *options])


def _pairs(entries: list[str]):
    seen = set()
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (name and equals and value):
            raise InputError(f"--adapters: {entry!r} is not name=directory")
        if name in seen:
            raise InputError(f"--adapters: {name!r} is given twice")
        seen.add(name)
        yield name, value


if __name__ == "__main__":
    cli.run(main)
