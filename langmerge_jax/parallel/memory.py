"""How much memory the devices have left."""

import math
import pathlib
import re
import threading
from collections.abc import Callable

import jax
from jax.sharding import Mesh

# The share of what is free that may be counted on: not all of it lies in one piece.
USABLE = 0.95
_HOST = pathlib.Path("/proc/meminfo")
_PROCESS = pathlib.Path("/proc/self")
# Between two looks at what a device has in use. A step's temporaries may be given back as soon as
# its last kernel is queued, which is some milliseconds.
_LOOK_SECONDS = 0.001
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


def peak_beside(mesh: Mesh, call: Callable[[], None]) -> float | None:
    """Returns the most bytes of a device that a call takes beside what is in use before it.

    Of CPU devices a share of what the whole process takes more, as Linux counts it; what lies in
    pieces below 32 MiB may be missing, which the allocator may still have from before. None where
    the system does not tell.

    Args:
      mesh: the devices.
      call: which waits for its results.
    """
    device = mesh.local_devices[0]
    if stats := device.memory_stats():
        return _most_in_use(device, call) - stats["bytes_in_use"]
    if device.platform != "cpu" or not (_PROCESS / "clear_refs").exists():
        return None
    (_PROCESS / "clear_refs").write_text("5")  # The peak begins anew.
    before = _of_process("VmRSS")
    call()
    return (_of_process("VmHWM") - before) / len(mesh.local_devices)


def _most_in_use(device: jax.Device, call: Callable[[], None]) -> int:
    """The most bytes in use: the peak where the call raises it, else the most that looks see."""
    before, done = device.memory_stats(), threading.Event()
    most = before["bytes_in_use"]

    def look() -> None:
        nonlocal most
        while not done.wait(_LOOK_SECONDS):
            most = max(most, device.memory_stats()["bytes_in_use"])

    looks = threading.Thread(target=look, daemon=True)
    looks.start()
    try:
        call()
    finally:
        done.set()
        looks.join()
    peak = device.memory_stats()["peak_bytes_in_use"]
    return peak if peak > before["peak_bytes_in_use"] else most


def _of_process(name: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) * 1024


def human(count: float) -> str:
    """Returns bytes as text."""
    if not math.isfinite(count):
        return "more than there is"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def asked_for(message: str) -> float:
    """Returns the bytes that a compiler says it would need, infinite if it names none."""
    found = _ASKED.search(message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else math.inf
