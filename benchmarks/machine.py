"""What the machine is that a benchmark ran on, and when."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from langmerge_jax.parallel.mesh import MESH_AXES


def describe_machine(*packages: str) -> dict[str, Any]:
    """Returns {device, cpu, cores, memory_gb, date, python, jax}.

    Args:
        *packages: Others than jax whose versions count.
    """
    info = pathlib.Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", *packages)},
    }


def one_device() -> Mesh:
    """A mesh of the first device alone."""
    axes = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh((1, 1, 1), MESH_AXES, axis_types=axes, devices=jax.devices()[:1])
