"""How much memory the devices have left."""

import math
import pathlib

from jax.sharding import Mesh

# Not all of what is free lies in one piece.
_USABLE = 0.95
_HOST = pathlib.Path("/proc/meminfo")


def free_memory(mesh: Mesh) -> float:
    """Returns the usable bytes that are free on the fullest device of this process.

    CPU devices share what the host has available. Infinite where the system does not tell.
    """
    devices = mesh.local_devices
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        return _USABLE * min(x["bytes_limit"] - x["bytes_in_use"] for x in stats)
    if devices[0].platform != "cpu" or not _HOST.exists():
        return math.inf
    lines = dict(line.split(":", 1) for line in _HOST.read_text().splitlines())
    return _USABLE * int(lines["MemAvailable"].split()[0]) * 1024 / len(devices)


def human(count: float) -> str:
    """Returns bytes as text."""
    if not math.isfinite(count):
        return "more than there is"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
