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


# Flags of a merge of --adapters; the merges of a config are set by the config.
_OF_ADAPTERS = [
    "method",
    "density",
    "lambda",
    "rank",
    "seed",
    "weights",
    "missing",
    "heads",
    "allow_base_mismatch",
    "dtype",
    "output",
    "base",
    "dry_run",
]


def main() -> None:
    if _ADAPTERS.value:
        if flags.FLAGS.config is not None:
            raise InputError("--adapters and --config are two ways to say what is merged; give one")
        _merge_directories()
        return
    for name in _OF_ADAPTERS:
        if flags.FLAGS[name].present:
            raise InputError(
                f"--{name} is for --adapters, which are missing; the merges of a config are set by "
                "its config.merge"
            )
    config, workdir = cli.config_and_workdir()
    # Imported here, so that --help and wrong flags answer at once.
    from langmerge_jax.lifecycle.merging import merge_all
    from langmerge_jax.lifecycle.run import Run

    merge_all(Run(config, workdir))
    print(f"merged adapters: {workdir / 'merged'}")


def _merge_directories() -> None:
    sources = {name: pathlib.Path(value) for name, value in _pairs(_ADAPTERS.value)}
    base = None if _BASE.value is None else pathlib.Path(_BASE.value)
    if _OUTPUT.value is None and not _DRY_RUN.value:
        raise InputError("--output is missing; name the directory to write")
    from langmerge_jax.adapters import load_adapter
    from langmerge_jax.adapters.writing import refuse_other_contents
    from langmerge_jax.lifecycle.writing import write_merged_adapter, write_merged_model
    from langmerge_jax.merging import Merge
    from langmerge_jax.merging.fold import refuse_contents
    from langmerge_jax.merging.weights import read_weights

    recipe = _recipe()
    if recipe.full_rank and base is None:
        raise InputError(
            f"{recipe.name} is full rank and fits no adapter; give --rank, such as 64 or 0.95, to "
            "truncate it, --base to fold it into full weights, or a low-rank method such as "
            "ties_knots"
        )
    if base is not None and _DTYPE.value is not None:
        raise InputError("--dtype is an adapter's; a model that is folded keeps its base's")
    if base is not None and not (base / "config.json").is_file():
        raise InputError(f"--base={base}: no Hugging Face model directory, it has no config.json")
    output = None if _OUTPUT.value is None else pathlib.Path(_OUTPUT.value)
    if output is not None:
        _check_output(output, [*sources.values(), *([base] if base else [])])
        # Also asked by the writer; here before a plan, or the work, begins.
        (refuse_contents if base else refuse_other_contents)(output)
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
        from langmerge_jax.merging.plan import plan
        from langmerge_jax.reporting.card import plan_table

        found = plan(ready, folded=base is not None)
        print(plan_table(found, f"Plan of {recipe.name}; nothing is written").text())
        return
    if base is not None:
        facts = write_merged_model(ready, sources, base, output)
    else:
        facts = write_merged_adapter(ready, sources, output)
    if facts["energy"] is not None:
        print(f"truncated: {facts['energy']:.4f} of the energy is kept")
    what = "full model" if base is not None else f"adapter of rank {facts['rank']}"
    print(f"merged {len(sources)} adapters by {ready.recipe.name}: {what}, {output}")


def _check_output(output: pathlib.Path, inputs: list[pathlib.Path]) -> None:
    """Refuses a directory that is an input, or that holds anything but an earlier merge."""
    for path in inputs:
        if output.resolve() == path.resolve():
            raise InputError(f"--output={output} is an input of this merge; give another directory")
    if output.is_dir() and any(output.iterdir()) and not (output / "merge.json").is_file():
        raise InputError(
            f"--output={output} holds {min(x.name for x in output.iterdir())!r}, which no merge "
            "wrote (it has no merge.json); give another directory"
        )


def _recipe():
    """The recipe that method, density, lambda and rank make together."""
    from langmerge_jax.merging import parse

    method, *options = _METHOD.value.split(",")
    given = {
        "density": ("@", _DENSITY.value),
        "lambda": ("*", flags.FLAGS["lambda"].value if flags.FLAGS["lambda"].present else None),
    }
    for flag, (sign, value) in given.items():
        if value is None:
            continue
        if sign in method:
            raise InputError(f"--{flag}={value}: --method={_METHOD.value} has one already")
        at = method.find("*") if sign == "@" and "*" in method else len(method)
        method = f"{method[:at]}{sign}{value}{method[at:]}"
    if _RANK.value is not None:
        options.append(f"rank={_RANK.value}")
    return parse(",".join([method, *options]))


def _pairs(entries: list[str]):
    seen = set()
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (name and equals and value):
            raise InputError(f"--adapters: {entry!r} is not name=directory")
        if ":" in name:
            raise InputError(f"--adapters: {name!r} has a colon, which --weights reads otherwise")
        if name in seen:
            raise InputError(f"--adapters: {name!r} is given twice")
        seen.add(name)
        yield name, value


if __name__ == "__main__":
    cli.run(
        main, too_much="--dry_run says what a merge takes; JAX_PLATFORMS=cpu merges without devices"
    )
