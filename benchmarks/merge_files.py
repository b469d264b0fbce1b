"""Merges of whole models through the door, from files to files: 8B, and against mergekit."""

import dataclasses
import pathlib
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np

from benchmarks import measuring, merge_inputs, merge_peers
from benchmarks.measuring import Process, Section
from benchmarks.merge_inputs import HALF_B, LLAMA_8B, Sizes
from langmerge_jax.adapters import Factors, load_adapter

RANK = 64
_HALF_B_RANK = 16
_HALF_B_SMALL = Sizes(128, 64, 256, 2, 512)

# Bytes that must stay free of a disk.
_SPARE = 2 * 10**9


def door(adapters: dict[str, pathlib.Path], output: pathlib.Path, *flags: str) -> Process:
    """Runs `python -m langmerge_jax.merge` on directories."""
    shutil.rmtree(output, ignore_errors=True)
    given = ",".join(f"{name}={path}" for name, path in adapters.items())
    command = [sys.executable, "-m", "langmerge_jax.merge", f"--adapters={given}"]
    return measuring.run([*command, f"--output={output}", *flags])


def again(adapters: dict[str, str], recipe: str, output: str, base: str | None) -> float:
    """Seconds of what the door does, after every program it needs was compiled in this process."""
    from langmerge_jax.lifecycle.writing import write_merged_adapter, write_merged_model
    from langmerge_jax.merging import Merge

    def ready() -> Merge:
        return Merge({name: load_adapter(path) for name, path in adapters.items()}, recipe)

    first = ready()
    modules = [alike[0] for alike in first.alike()]
    if first.recipe.full_rank:
        for module in modules:
            first.deltas().delta(module)
    else:
        dict(first.factors(modules))
    sources = {name: pathlib.Path(path) for name, path in adapters.items()}
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    if base is None:
        write_merged_adapter(ready(), sources, pathlib.Path(output))
    else:
        write_merged_model(ready(), sources, pathlib.Path(base), pathlib.Path(output))
    return time.perf_counter() - start


def knots_8b(scratch: pathlib.Path, layers: int, repeats: int) -> Section:
    """Five r=64 adapters of Llama-3.1-8B, bf16, from files to a file.

    The bar on seconds is for two quiet cores; that on the ratio holds on a noisy machine too.
    """
    sizes = dataclasses.replace(LLAMA_8B, layers=layers)
    # Five in, five times as much out, and a copy.
    _demand(scratch, 12 * RANK * _in_and_out(sizes) * 2)
    section = Section(**dataclasses.asdict(sizes), adapters=5, rank=RANK, repeats=repeats)
    adapters = merge_inputs.adapters_on_disk(
        scratch / f"8b-{layers}", sizes, RANK, ml_dtypes.bfloat16
    )
    bytes_in = sum(map(merge_inputs.size_of, adapters.values()))
    output, texts = scratch / "merged", {name: str(path) for name, path in adapters.items()}
    recipes = {1.0: "ties_knots@1", 0.5: "ties_knots@0.5"}
    for density, recipe in recipes.items():
        door(adapters, output, "--method=ties_knots", f"--density={density}")
        apart = _against_transcription(adapters, output, density)
        # bfloat16 keeps 8 bits.
        section.note(f"{recipe}, difference to transcription", apart, most=2**-7)
    section.note("files read", bytes_in / 1e9, "GB")
    section.note("file written", merge_inputs.size_of(output) / 1e9, "GB")

    bare, copy = [], []
    cold: dict[str, list[Process]] = {recipe: [] for recipe in recipes.values()}
    warm: dict[str, list[float]] = {recipe: [] for recipe in recipes.values()}
    for _ in range(repeats):
        bare.append(measuring.call(merge_peers.bare_seconds, dataclasses.asdict(sizes), 5, RANK)[1])
        copy.append(_copy_seconds(adapters, scratch / "copy"))
        for density, recipe in recipes.items():
            measuring.forget(_files(adapters))
            cold[recipe].append(
                door(adapters, output, "--method=ties_knots", f"--density={density}")
            )
            measuring.forget(_files(adapters))
            warm[recipe].append(measuring.call(again, texts, recipe, str(output), None)[1])
            shutil.rmtree(output)
    least = section.median("bare QR, SVD and products", bare)
    least += section.median("copy of the files", copy)
    for density, recipe in recipes.items():
        runs = cold[recipe]
        most = {1.0: 90, 0.5: 180}[density]
        seconds = section.median(f"{recipe}, cold", [x.seconds for x in runs], most=most)
        section.median(f"{recipe}, warm", warm[recipe])
        section.note(f"{recipe}, cold to bare and copy", seconds / least, "x", most=1.3)
        section.note(
            f"{recipe}, warm to bare and copy", statistics.median(warm[recipe]) / least, "x"
        )
        _note_memory(section, recipe, runs, most=4)
    return section


def _against_transcription(
    adapters: dict[str, pathlib.Path], output: pathlib.Path, density: float
) -> float:
    """How far one k_proj is from KnOTS by the full SVD, as a share of its norm."""
    module = "model.layers.0.self_attn.k_proj"
    factors = [load_adapter(path).modules[module] for path in adapters.values()]
    whole = [(x.a.astype(np.float32), x.b.astype(np.float32)) for x in factors]
    expected = merge_peers.knots(whole, [density])[0][density]
    found = load_adapter(output).modules[module].delta()
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _copy_seconds(adapters: dict[str, pathlib.Path], copy: pathlib.Path) -> float:
    """Reading all files from the disk and writing as much, which is what a merge writes too."""
    measuring.forget(_files(adapters))

    def copy_all() -> None:
        for name, path in adapters.items():
            shutil.copytree(path, copy / name)

    seconds = measuring.timed(copy_all)
    shutil.rmtree(copy)
    return seconds


def delta_8b(scratch: pathlib.Path, layers: int, repeats: int) -> Section:
    """TIES in delta space over Llama-3.1-8B, bf16, folded into a base of random values; one run."""
    del repeats  # Too long for more than one.
    vocabulary = LLAMA_8B.vocabulary if layers == LLAMA_8B.layers else 1024
    sizes = dataclasses.replace(LLAMA_8B, layers=layers, vocabulary=vocabulary)
    _demand(scratch, 2 * 2 * sizes.parameters() + 5 * RANK * _in_and_out(sizes) * 2)
    section = Section(**dataclasses.asdict(sizes), adapters=5, rank=RANK, repeats=1)
    adapters = merge_inputs.adapters_on_disk(
        scratch / f"8b-{layers}", sizes, RANK, ml_dtypes.bfloat16
    )
    base = merge_inputs.base_on_disk(scratch / f"8b-{layers}-base", sizes, ml_dtypes.bfloat16)
    output = scratch / "folded"
    measuring.forget([*_files(adapters), *base.iterdir()])
    process = door(adapters, output, "--method=ties", "--density=0.5", f"--base={base}")
    module = "model.layers.0.self_attn.k_proj"
    found, expected = _found_and_expected(adapters, base, output, module)
    same = np.mean(found == expected.astype(found.dtype))
    section.note("weights that are the float64 result rounded", float(same), least=0.999)
    bytes_in = merge_inputs.size_of(base) + sum(map(merge_inputs.size_of, adapters.values()))
    section.note("files read", bytes_in / 1e9, "GB")
    section.note("cold", process.seconds, "s", most=1200)
    section.note("passes over the inputs, from the disk", process.read / bytes_in)
    section.note("passes over the output", process.written / merge_inputs.size_of(output))
    _note_memory(section, "ties@0.5", [process])
    shutil.rmtree(output)
    return section


def mergekit(scratch: pathlib.Path, small: bool, repeats: int) -> Section:
    """From a float32 base of half a billion weights to the merged model, against mergekit's `ties`.

    We read the base and five r=16 adapters; mergekit reads the base and five full models.
    """
    sizes, density = _HALF_B_SMALL if small else HALF_B, 0.5
    _demand(scratch, 4 * 10 * sizes.parameters())
    section = Section(**dataclasses.asdict(sizes), adapters=5, rank=_HALF_B_RANK, repeats=repeats)
    folder = scratch / ("half-b-small" if small else "half-b")
    adapters = merge_inputs.adapters_on_disk(folder / "adapters", sizes, _HALF_B_RANK, np.float32)
    base = merge_inputs.base_on_disk(folder / "base", sizes, np.float32)
    models = [
        merge_inputs.finetuned_on_disk(folder / f"full-{name}", sizes, base, load_adapter(path))
        for name, path in adapters.items()
    ]
    config = merge_peers.mergekit_config(folder / "mergekit.yml", base, models, density)
    ours, theirs = folder / "ours", folder / "theirs"
    flags = ["--method=ties", f"--density={density}", f"--base={base}"]

    def run_theirs(options: str) -> Process:
        shutil.rmtree(theirs, ignore_errors=True)
        return measuring.run(merge_peers.mergekit_command(config, theirs, options))

    tried = {options: run_theirs(options).seconds for options in merge_peers.MERGEKIT_OPTIONS}
    section.seconds["mergekit, plain and with --async-write"] = [
        round(x, 3) for x in tried.values()
    ]
    fastest = min(tried, key=tried.get)
    section.settings["mergekit_options"] = merge_peers.MERGEKIT_OPTIONS[fastest]
    door(adapters, ours, *flags)
    _compare_errors(section, adapters, base, ours, theirs)

    cold: dict[str, list[Process]] = {"ours": [], "mergekit": []}
    warm: dict[str, list[float]] = {"ours": [], "mergekit": []}
    texts = {name: str(path) for name, path in adapters.items()}
    for _ in range(repeats):
        cold["ours"].append(door(adapters, ours, *flags))
        cold["mergekit"].append(run_theirs(fastest))
        given = [texts, f"ties@{density}", str(ours), str(base)]
        warm["ours"].append(measuring.call(again, *given)[1])
    warm["mergekit"].append(
        measuring.call(merge_peers.mergekit_again, str(config), f"{theirs}-again", fastest)[1]
    )
    for mode, seconds in (
        ("cold", {name: [x.seconds for x in runs] for name, runs in cold.items()}),
        ("warm", warm),
    ):
        medians = {name: section.median(f"{name} {mode}", x) for name, x in seconds.items()}
        bar = {"least": 5} if mode == "cold" else {}
        section.note(f"times faster {mode}", medians["mergekit"] / medians["ours"], "x", **bar)
    for kind, name in (("anonymous", "anonymous memory"), ("resident", "resident memory")):
        peaks = {who: max(getattr(run, kind) for run in runs) for who, runs in cold.items()}
        for who, peak in peaks.items():
            section.note(f"{who}, {name}", peak / 1e9, "GB")
        section.note(f"share of mergekit's {name}", peaks["ours"] / peaks["mergekit"], most=1 / 3)
    for path in folder.glob("theirs*"):
        shutil.rmtree(path)
    shutil.rmtree(ours)
    return section


def _compare_errors(
    section: Section,
    adapters: dict[str, pathlib.Path],
    base: pathlib.Path,
    ours: pathlib.Path,
    theirs: pathlib.Path,
) -> None:
    """Both against TIES in float64 from the factors, added to the base in float64."""
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"):
        errors = {}
        for who, output in (("ours", ours), ("mergekit", theirs)):
            module = f"model.layers.1.{name}"
            found, expected = _found_and_expected(adapters, base, output, module)
            error = np.abs(found - expected)
            errors[who] = float(error.max()), float(np.sqrt(np.mean(np.square(error))))
        for i, kind in enumerate(("max", "rms")):
            for who, pair in errors.items():
                section.note(f"{name}, {who}, {kind} error", pair[i])
            share = errors["ours"][i] / errors["mergekit"][i]
            section.note(f"{name}, our {kind} error to mergekit's", share, "x", most=1)


def _found_and_expected(
    adapters: dict[str, pathlib.Path], base: pathlib.Path, output: pathlib.Path, module: str
) -> tuple[np.ndarray, np.ndarray]:
    """A weight of the output as it is stored, and the base's plus TIES at 0.5 in float64."""
    factors = [load_adapter(path).modules[module] for path in adapters.values()]
    weight = merge_inputs.model_on_disk(base)[f"{module}.weight"].astype(np.float64)
    found = merge_inputs.model_on_disk(output)[f"{module}.weight"]
    return found, weight + _ties_float64(factors, 0.5)


def _ties_float64(factors: Sequence[Factors], density: float) -> np.ndarray:
    """TIES at equal weights, as its paper and mergekit have it, trimmed in each task vector."""
    total, trimmed = 0.0, []
    for one in factors:
        delta = one.delta(np.float64)
        magnitude = np.abs(delta)
        kept = int(density * delta.size)
        threshold = np.partition(magnitude.ravel(), delta.size - kept)[delta.size - kept]
        trimmed.append(np.where(magnitude >= threshold, delta, 0))
        total = total + trimmed[-1]
    sign = np.where(total >= 0, 1, -1)
    agreeing = sum(x * (np.sign(x) == sign) for x in trimmed)
    return agreeing / np.maximum(sum((np.sign(x) == sign) for x in trimmed), 1)


def _note_memory(
    section: Section, name: str, runs: Sequence[Process], most: float | None = None
) -> None:
    peak = max(run.anonymous for run in runs) / 1e9
    section.note(f"{name}, anonymous memory", peak, "GB", most=most)
    section.note(f"{name}, resident memory", max(run.resident for run in runs) / 1e9, "GB")


def _files(adapters: dict[str, pathlib.Path]) -> Iterator[pathlib.Path]:
    for directory in adapters.values():
        yield from directory.iterdir()


def _in_and_out(sizes: Sizes) -> int:
    """Entries of an adapter of rank 1."""
    return sum(sum(shape) for shape in sizes.modules().values())


def _demand(scratch: pathlib.Path, wanted: int) -> None:
    """Ends the benchmark where the disk has no room for it."""
    # What an earlier run has kept is not needed again.
    free = shutil.disk_usage(scratch).free + merge_inputs.size_of(scratch)
    if free < wanted + _SPARE:
        sys.exit(
            f"{scratch}: {free / 1e9:.0f} GB are free, {(wanted + _SPARE) / 1e9:.0f} GB are "
            "needed; give another --scratch"
        )
