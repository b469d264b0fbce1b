"""TPU slices that are not there: their devices, for compiling, and what a chip can do."""

import dataclasses
import importlib.util
import itertools
import math
from collections.abc import Sequence

import jax

from langmerge_jax.errors import InputError

# What Google offers, of the TPU compiler's many: v5p beyond a cube has sides of whole cubes.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = [x for x in itertools.product(range(4, 25, 4), repeat=3) if sorted(x) == list(x)]
_SHAPES = {
    "v5e": _FLAT,
    "v6e": _FLAT,
    "v5p": (
        *("2x2x1", "2x2x2", "2x2x4", "2x4x4"),
        *("x".join(map(str, x)) for x in _CUBES if math.prod(x) <= 6144),
    ),
}


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
      InputError: without libtpu, and for a topology that Google does not offer.
    """
    generation, _, shape = topology.partition(":")
    if shape not in _SHAPES.get(generation, ()):
        raise InputError(f"--topology={topology}: there is none such; {_offered(generation)}")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"--topology={topology}: the TPU compiler libtpu is not installed; "
            "pip install -e '.[tpu]' brings it"
        )
    # Slow to import, and of no use elsewhere.
    from jax.experimental import topologies

    # A host has four chips or more, but for the one that has one.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if shape == "1x1" else {}
    return topologies.get_topology_desc(topology, platform="tpu", **alone).devices


def _offered(generation: str) -> str:
    if generation not in _SHAPES:
        return f"take one of {', '.join(_SHAPES)}, such as v5e:4x4"
    shapes = _SHAPES[generation]
    listed = [*shapes[: len(_FLAT)], *(["…"] if len(shapes) > len(_FLAT) else []), shapes[-1]]
    return f"{generation} comes as {', '.join(dict.fromkeys(listed))}"
