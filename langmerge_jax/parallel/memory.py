"""How much memory the devices have left."""

import math
import pathlib
import re

from jax.sharding import Mesh

# The share of what is free that may be counted on: not all of it lies in one piece.
USABLE = 0.95
_HOST = pathlib.Path("/proc/meminfo")
# How the TPU compiler says what it lacks room for, of either kind.
_ASKED = re.compile(r"(?:\(|Used )(\d+(?:\.\d+)?)([KMGT])\)? (?:exceeds available|of)")


def free_memory(mesh: Mesh) -> float:
    """Returns the usable bytes that are free on the fullest device of this process.

    CPU devices share what the host has available. Infinite where the system does not tell.
    """
    devices = mesh.local_devices
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        return USABLE * min(x["bytes_limit"] - x["bytes_in_use"] for x in stats)
    if devices[0].platform != "cpu" or not _HOST.exists():
        return math.inf
    lines = dict(line.split(":", 1) for line in _HOST.read_text().splitlines())
    return USABLE * int(lines["MemAvailable"].split()[0]) * 1024 / len(devices)


def human(count: float) -> str:
    """Returns bytes as text."""
    if not math.isfinite(count):
        return "more than there is"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def asked_for(message: str) -> float:
    """Returns the bytes that a compiler says it would need, infinite if it names none."""
    found = _ASKED.search(message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else math.inf
