"""TPU slices that are not there: their devices, for compiling, and what a chip can do."""

import dataclasses
import importlib.util
from collections.abc import Sequence

import jax

from langmerge_jax.errors import InputError

EXAMPLES = "v5e:2x2, v5e:4x4, v6e:2x4, v5p:2x2x1"


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device has.

    Attributes:
      memory: bytes that programs may use.
      flops: dense FLOP/s in the dtype of the computation.
      bandwidth: of its memory, bytes a second.
      links: bytes a second that reach it from other devices; None if that is not known.
    """

    memory: float
    flops: float
    bandwidth: float
    links: float | None


# By jax's `device_kind`. Peaks and bandwidths from Google's pages on each generation, of
# November 2026, which count links in both directions: half of that comes in. Memory is what the
# TPU compiler leaves to programs.
CHIPS = {
    "TPU v5 lite": Chip(15.75 * 2**30, 197e12, 819e9, 200e9),
    "TPU v5": Chip(95.74 * 2**30, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip(31.25 * 2**30, 918e12, 1638e9, 400e9),
}


def devices_of(topology: str) -> Sequence[jax.Device]:
    """Returns the devices of a TPU slice that is not there.

    Args:
      topology: generation and shape, such as v5e:4x4.

    Raises:
      InputError: without libtpu, and for a topology that it or `CHIPS` does not know.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"--topology={topology}: the TPU compiler libtpu is not installed; "
            "pip install -e '.[tpu]' brings it"
        )
    # Slow to import, and of no use elsewhere.
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(topology, platform="tpu").devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"--topology={topology}: libtpu knows none such ({str(error).splitlines()[0]}); "
            f"these it knows: {EXAMPLES}"
        ) from error
    if devices[0].device_kind not in CHIPS:
        raise InputError(
            f"--topology={topology}: what a {devices[0].device_kind} can do is not known here; "
            f"take {EXAMPLES}"
        )
    return devices
