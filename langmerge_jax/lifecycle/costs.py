"""What merging saves: the ledgers of a workdir side by side."""

import logging
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from langmerge_jax.files import read_json, write_json
from langmerge_jax.lifecycle.measured import read_measured
from langmerge_jax.lifecycle.run import COMBINED, Run
from langmerge_jax.lifecycle.stages import digest, digest_rows
from langmerge_jax.lifecycle.training import LEDGER, TRAINING
from langmerge_jax.lifecycle.update import CHANGES

logger = logging.getLogger(__name__)

# Devices that the individual trainings are scheduled on: one, as many as the paper's case study
# implies, and one for each of its languages.
DEVICES = (1, 2, 5)
ALONE = "alone.json"
# What adapters that were trained together bear by their tokens.
_SHARED = ("device_seconds", "step_seconds", "slots")


def schedule(seconds: Sequence[float], devices: int) -> float:
    """Returns when the last job ends if the longest that waits takes the next free device.

    Args:
      seconds: of each job.
      devices: that work side by side, a job each.

    References: Graham 1969 (longest processing time first).
    """
    free = [0.0] * devices
    for job in sorted(seconds, reverse=True):
        first = free.index(min(free))
        free[first] += job
    return max(free)


def saving(cost: float, reference: float) -> float:
    """Returns the share of `reference` that is saved."""
    return 1 - cost / reference


def compare_costs(
    what: str, ours: dict[str, Any], reference: dict[str, Any], price: float
) -> dict[str, Any]:
    """Returns one row of the cost table.

    Args:
      what: was done.
      ours, reference: costs, from `cost_of`, of the way that merges and of retraining `combined`.
      price: dollars an hour of one device.

    Returns:
      device seconds, tokens, slots (tokens with padding) and dollars of both, the measured saving
      in device seconds, and the savings that tokens and slots predict. What lies between those two
      is padding; between slots and what was measured, mostly the machine's unrest, as equal slots
      run through equal programs. Loading and compiling are left out: the first training in a
      process pays them for all.
    """
    found = {
        "what": what,
        "measured_saving": saving(ours["device_seconds"], reference["device_seconds"]),
        "predicted_saving": saving(ours["tokens"], reference["tokens"]),
        "padded_saving": saving(ours["slots"], reference["slots"]),
    }
    for prefix, cost in (("", ours), ("combined_", reference)):
        found[f"{prefix}device_seconds"] = cost["device_seconds"]
        found[f"{prefix}tokens"] = cost["tokens"]
        found[f"{prefix}dollars"] = cost["device_seconds"] / 3600 * price
        found[f"{prefix}slots"] = cost["slots"]
    return found


def cost_of(workdir: pathlib.Path, adapters: Iterable[pathlib.Path]) -> dict[str, Any] | None:
    """Returns what it cost to train some adapters.

    Of a training that made several, each bears the share that its tokens have.

    Args:
      workdir: with the trainings.
      adapters: directories.

    Returns:
      {device_seconds, step_seconds, tokens, slots, device, devices}; None if one was not trained
      here.
    """
    total: dict[str, Any] = dict.fromkeys(_SHARED, 0.0) | {"tokens": 0}
    for path in adapters:
        if not (path / TRAINING).exists():
            logger.info("%s: was not trained here, its cost is not known", path)
            return None
        ledger = read_json(workdir / "training" / read_json(path / TRAINING)["folder"] / LEDGER)
        tokens = ledger["tokens"][path.name]
        for key in _SHARED:
            total[key] += ledger[key] * tokens / sum(ledger["tokens"].values())
        total["tokens"] += tokens
        total |= {key: ledger[key] for key in ("device", "devices")}
    return total


def time_alone(run: Run) -> dict[str, float]:
    """Returns the seconds of training each language alone, and `combined`, from a few warm steps.

    They take turns, as the machine may be slower in one minute than in the next. Keeps what it
    found in `alone.json`.
    """
    path = run.home / ALONE
    rows = {x: run.examples(x, "train") for x in run.languages}
    rows[COMBINED] = [row for some in rows.values() for row in some]
    inputs = digest([run.base_identity, {x: digest_rows(some) for x, some in rows.items()}])
    if path.exists() and (found := read_json(path))["inputs"] == inputs:
        return {name: timed["seconds"] for name, timed in found["trainings"].items()}
    encoded = {name: run.encode(some) for name, some in rows.items()}
    timed = run.trainer.time_alone(encoded)
    write_json(path, {"inputs": inputs, "trainings": timed})
    return {name: one["seconds"] for name, one in timed.items()}


def write_costs(run: Run, *, alone: bool) -> bool:
    """Writes `costs.json` if the run's adapters, `combined` among them, were trained here.

    {rows: from `compare_costs`, of setting up and of each update that also retrained `combined`;
    combined_seconds: by the clock; device, devices; dollars_per_device_hour; scheduled_seconds: by
    the clock, of the individual trainings by number of languages at a time; alone_seconds: of each;
    measured: what `launch.fan_out` found in training these adapters apart}

    Args:
      run: with its adapters.
      alone: time each language alone for the schedule, even if that was never done.

    Returns:
      whether it is there now.
    """
    path = run.home / "costs.json"
    combined = cost_of(run.workdir, [run.adapter_directory(COMBINED)])
    individuals = cost_of(run.workdir, map(run.adapter_directory, run.languages))
    if combined is None or individuals is None:
        path.unlink(missing_ok=True)
        return False
    price = run.config.dollars_per_device_hour
    rows = [compare_costs("set up", individuals, combined, price)]
    for changes in sorted(run.workdir.glob(f"updates/*/{CHANGES}")):
        home, language = changes.parent, read_json(changes)["language"]
        ours = cost_of(run.workdir, [home / "adapters" / language])
        others = cost_of(run.workdir, [home.parent / language / "adapters" / COMBINED])
        if ours and others:
            rows.append(compare_costs(f"update {home.name}", ours, others, price))
    costs = {
        "device": combined["device"],
        "devices": combined["devices"],
        "dollars_per_device_hour": price,
        "rows": rows,
        "combined_seconds": combined["step_seconds"],
    }
    if alone or (run.home / ALONE).exists():
        seconds = time_alone(run)
        apart = [seconds[x] for x in run.languages]
        costs["alone_seconds"] = seconds
        measured = read_measured(run.home, {x: run.adapter_directory(x) for x in run.languages})
        if measured:
            costs["measured"] = measured
        side_by_side = {*DEVICES, *([measured["at_once"]] if measured else [])}
        costs["scheduled_seconds"] = {str(k): schedule(apart, k) for k in sorted(side_by_side)}
    write_json(path, costs)
    return True
