"""What the machine is that a benchmark ran on."""

import importlib.metadata
import os
import pathlib
import platform
import re
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Returns {cpu, cores, python, jax}."""
    info = pathlib.Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
    }
