"""What a config's training would take of devices that one may rent, before anything is paid for."""

import collections
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence

import jax
import ml_collections
from jax.sharding import Mesh

from langmerge_jax.data.batching import bucket
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.errors import InputError
from langmerge_jax.lifecycle.run import COMBINED, Run
from langmerge_jax.models.abstract import abstract_base, read_config
from langmerge_jax.parallel.devices import measure_speed
from langmerge_jax.parallel.memory import USABLE, free_memory, human
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.parallel.topologies import CHIPS, Chip, devices_of
from langmerge_jax.reporting.table import Cell, Table
from langmerge_jax.training.batches import adapter_steps, steps_of
from langmerge_jax.training.planning import (
    Roofline,
    StepMemory,
    measure_step,
    roofline,
    row_shares,
    step_memory,
)
from langmerge_jax.training.settings import TrainSettings
from langmerge_jax.training.step import Shape

logger = logging.getLogger(__name__)

AT_HAND = "at hand"

Rows = Sequence[Encoded]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One training on one arrangement of devices.

    Attributes:
      where: topology and mesh.
      mesh: the devices.
      chip: what each has.
      price: dollars of a device's hour; 0 if it is not known.
      shape: of the largest step.
      memory: of that.
      step: the least seconds of that.
      seconds: the least of all steps.
    """

    where: str
    mesh: Mesh
    chip: Chip
    price: float
    shape: Shape
    memory: StepMemory
    step: Roofline
    seconds: float


def plan(
    run: Run,
    topologies: Sequence[str],
    *,
    length: int,
    answer: int,
    utilization: float,
    prices: Mapping[str, float],
    measure: bool = False,
) -> str:
    """Returns tables of what training takes, and what would help where it does not fit.

    What costs least comes first: dollars, or without prices hours of a device.

    Args:
      run: of the config; no weights are read, and with a length no rows either.
      topologies: of TPU slices; none for the devices at hand.
      length: of every row in tokens; 0 reads the rows.
      answer: tokens of it that are predicted, with a length.
      utilization: the share of the least time's speed that is counted on.
      prices: {generation: dollars of a chip's hour}; the config's where it has none.
      measure: whether the largest step is taken, too, for which the base's weights are loaded; of
        the devices at hand.

    Raises:
      InputError: for a topology or base that is not known, and a mesh that arranges no devices.
    """
    if measure and topologies:
        raise InputError("--measure: takes a step on the devices at hand; leave --topology out")
    if not 0 < utilization <= 1:
        raise InputError(f"--utilization={utilization:g}: must be above 0 and at most 1")
    name = run.path(run.config.base)
    config = read_config(name)
    settings = run.train_settings(config)
    data = _rows(run, settings, length, answer)
    size = run.at_once(len(data))
    plans = []
    # All of them before any is compiled, which takes minutes.
    for topology, mesh, price in list(_arrangements(run, topologies, prices)):
        chip = CHIPS[mesh.devices.flat[0].device_kind] if topology else _at_hand(run)
        base = abstract_base(
            name, config, mesh=mesh, dtype=run.dtype, attention=run.config.attention
        )
        steps = _steps(data, settings, mesh, size, alike=length > 0)
        largest = max(steps, key=lambda shape: (_tokens(shape), shape))
        where = f"{topology or AT_HAND} {_named(mesh)}"
        logger.info("%s: compiling a step of %d x %d x %d tokens", where, *largest[0])
        memory = step_memory(base, settings, largest, chip.memory)
        times = {x: roofline(base, settings, x, memory.division, chip) for x in steps}
        total = sum(count * times[shape].seconds for shape, count in steps.items())
        plans.append(Plan(where, mesh, chip, price, largest, memory, times[largest], total))
    priced = all(x.price for x in plans)
    plans.sort(key=lambda x: (not x.memory.fits, x.mesh.size * x.seconds * (x.price or 1)))
    text = _memory_table(plans).text() + "\n" + _time_table(plans, utilization, priced).text()
    below = [note for x in plans for note in (_lacking(x, settings), _unshared(x))]
    if measure and plans[0].memory.fits:
        below.append(_measured(plans[0], run, settings, _jobs(data, size)))
    return "\n".join([text, *filter(None, below)]).rstrip()


def _rows(run: Run, settings: TrainSettings, length: int, answer: int) -> dict[str, list[Encoded]]:
    """Rows to train on by adapter; with a length, as many as the config says and all alike."""
    groups = {x: (x,) for x in run.languages}
    if run.config.combined:
        groups = {COMBINED: run.languages}
    if not length:
        return {
            name: run.encode([row for x in languages for row in run.examples(x, "train")])
            for name, languages in groups.items()
        }
    count = run.config.data.rows.train
    if count < 1:
        raise InputError(
            f"--length={length}: data.rows.train={count} says not how many rows of it there are; "
            "give --config.data.rows.train, or leave --length out"
        )
    if not answer < length:
        raise InputError(
            f"--answer_length={answer}: must be below --length={length}, which counts it"
        )
    bucket(length, settings.lengths)
    row = Encoded((0,) * (length - answer), (0,) * answer)
    return {name: [row] * (count * len(languages)) for name, languages in groups.items()}


def _arrangements(
    run: Run, topologies: Sequence[str], prices: Mapping[str, float]
) -> Iterator[tuple[str, Mesh, float]]:
    """Yields topology, mesh and price of each plan; the topology is empty for devices at hand."""
    price = run.config.dollars_per_device_hour
    generations = dict.fromkeys(x.partition(":")[0] for x in topologies)
    if unknown := [x for x in prices if x not in generations]:
        raise InputError(f"--dollars={unknown[0]}=…: --topology names no slice of {unknown[0]}")
    lacking = [x for x in generations if x not in prices]
    if lacking and len(generations) > 1 and (price or prices):
        raise InputError(
            f"{', '.join(generations)} have prices of their own; give --dollars="
            f"{','.join(f'{x}=…' for x in generations)}"
        )
    if not topologies:
        yield "", run.mesh, price
    for topology in topologies:
        for mesh in _meshes(run.config, devices_of(topology)):
            yield topology, mesh, prices.get(topology.partition(":")[0], price)


def _at_hand(run: Run) -> Chip:
    """One of the devices at hand: what it does, and what of its memory is free."""
    device = run.mesh.local_devices[0]
    # So large that a product takes milliseconds.
    side, copied = (1024, 2**28) if device.platform == "cpu" else (8192, 2**30)
    memory = free_memory(run.mesh) / USABLE
    speed = measure_speed(device, run.dtype, side=side, copied=copied)
    return Chip(memory, speed.flops, speed.copy, None)


def _meshes(config: ml_collections.ConfigDict, devices: Sequence[jax.Device]) -> list[Mesh]:
    """The config's mesh if it says one that arranges a slice, else two that share the rows.

    A mesh on which the rows do not spread evenly would compute all of them on every device.
    """
    wanted, rows = config.mesh.to_dict(), config.train.batch_size
    if wanted != {"data": -1, "fsdp": 1, "tensor": 1} or len(devices) == 1:
        try:
            return [make_mesh(**wanted, devices=devices)]
        except InputError as error:
            logger.info("%s", error)
    found = []
    for tensor in (1, 2, 4, 8):
        fsdp = len(devices) // tensor
        if fsdp * tensor == len(devices) and rows % fsdp == 0:
            found.append(make_mesh(1, fsdp, tensor, devices=devices))
    if not found:
        raise InputError(
            f"{len(devices)} devices do not share train.batch_size={rows} rows evenly by fsdp and "
            "tensor up to 8; say how by --config.mesh.fsdp and --config.mesh.tensor"
        )
    return found[:2]


def _named(mesh: Mesh) -> str:
    sizes = [f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1]
    return " ".join(sizes) or "one device"


def _steps(
    data: Mapping[str, Rows], settings: TrainSettings, mesh: Mesh, size: int, *, alike: bool
) -> collections.Counter[Shape]:
    """How many steps of each shape train all adapters, `size` of them side by side."""
    found = collections.Counter()
    for job in _jobs(data, size):
        for step in adapter_steps(job, settings, mesh):
            if alike:  # So are all steps.
                found[step.shape] += max(steps_of(job, settings).values())
                break
            found[step.shape] += 1
    return found


def _jobs(data: Mapping[str, Rows], size: int) -> list[dict[str, Rows]]:
    """The trainings, each of so many adapters side by side."""
    names = sorted(data)
    starts = range(0, len(names), size)
    return [{name: data[name] for name in names[x : x + size]} for x in starts]


def _tokens(shape: Shape) -> int:
    (groups, rows, length), _ = shape
    return groups * rows * length


def _gib(count: float) -> Cell:
    return Cell(f"{count / 2**30:.2f}")


def _memory_table(plans: Sequence[Plan]) -> Table:
    kinds = ["base", "adapters", "optimizer", "best", "batch"]
    rows = {}
    for x in plans:
        parts, memory = x.memory.division.groups * x.memory.division.rows, x.memory
        given = {**memory.arguments}
        given["batch"] += given.pop("padding", 0.0)
        beside = Cell("-") if memory.free < 0 else _gib(memory.beside)
        rows[x.where] = [
            Cell("yes" if memory.fits else "no"),
            Cell(str(parts)),
            *(_gib(given[kind]) for kind in kinds),
            beside,
            _gib(memory.total),
            _gib(x.chip.memory),
        ]
    return Table(
        "Memory of a device, GiB, of the largest step as compiled",
        "",
        ["fits", "parts", *kinds, "beside", "sum", "has"],
        rows,
        [
            "parts: that a batch is cut into. beside: temporaries and results. Of what the others "
            "leave, 95 % may be taken by it"
        ],
    )


def _time_table(plans: Sequence[Plan], utilization: float, priced: bool) -> Table:
    rows = {}
    for x in plans:
        hours = x.seconds / utilization / 3600
        cost = [Cell(f"{hours * x.mesh.size * x.price:.2f}")] if priced else []
        rows[x.where] = [
            Cell(f"{x.step.flops * x.chip.flops / 1e12:.3g}"),
            *(Cell(f"{y:.3g}") for y in (x.step.flops, x.step.memory)),
            Cell(f"{x.step.links:.3g}" if x.chip.links else "?"),
            Cell(f"{hours:.2f}"),
            Cell(f"{hours * x.mesh.size:.2f}"),
            *cost,
            Cell(f"{x.memory.seconds:.0f}"),
        ]
    return Table(
        "Seconds of that step at best, and hours of the training",
        "",
        [
            *("TFLOP", "products", "memory", "links", "hours", "device hours"),
            *(["dollars"] if priced else []),
            "compiled s",
        ],
        rows,
        [
            "TFLOP: of a device. products, memory, links: what the step needs of each, over its "
            f"peak. Hours are all steps at {utilization:.0%} of the slowest of the three, which is "
            "assumed (--utilization); validation, loading and compiling are not in them"
        ],
    )


def _unshared(plan: Plan) -> str:
    """A line on rows that a mesh does not spread over all its devices, empty if it does."""
    (_, rows, _), _ = plan.shape
    count = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    shares = row_shares(plan.mesh, rows // plan.memory.division.rows)
    if shares == count:
        return ""
    return (
        f"{plan.where}: {rows} rows are not spread evenly over data x fsdp = {count} devices, "
        f"{count // shares} compute the same; take sizes whose product divides train.batch_size"
    )


def _lacking(plan: Plan, settings: TrainSettings) -> str:
    """A line on what does not fit, empty for what does."""
    memory, ((groups, _, _), _) = plan.memory, plan.shape
    if memory.fits:
        return ""
    ways = ["more devices"]
    if settings.keep == "best" and memory.arguments["best"] > -memory.free + memory.beside:
        ways.append("train.keep='last'")
    if groups > 1:
        ways.append("adapters_at_once=1")
    if memory.free < 0:
        lack = f"weights and adapters take {human(sum(memory.arguments.values()))}, "
        lack += f"the device has {human(plan.chip.memory)}"
    else:
        lack = f"the step asks for {human(memory.beside)}, {human(memory.free)} are left"
        ways.append("a shorter task.max_length")
        if settings.remat != "layer":
            ways.append("train.remat='layer'")
    return f"{plan.where} does not fit: {lack}; what helps: {', '.join(ways)}"


def _measured(
    plan: Plan, run: Run, settings: TrainSettings, jobs: Sequence[Mapping[str, Rows]]
) -> str:
    """A line on the largest step as it was taken."""
    steps = (x for job in jobs for x in adapter_steps(job, settings, run.mesh))
    step = max(steps, key=lambda x: (_tokens(x.shape), x.shape))
    found = measure_step(run.trainer, step, run.mesh)
    line = f"{plan.where}, measured: the step takes {found.seconds:.3g} s, "
    line += f"{found.seconds / plan.step.seconds:.2f} times its least"
    if found.beside is None:
        return f"{line}; what memory it takes the system does not tell"
    ratio = found.beside / plan.memory.beside
    return f"{line}, and {human(found.beside)} beside its arguments, {ratio:.2f} times the plan's"
