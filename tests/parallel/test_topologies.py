"""Slices are those that one can rent, and their compiler knows them."""

import importlib.util
import math

import pytest

from langmerge_jax.errors import InputError
from langmerge_jax.parallel.topologies import CHIPS, devices_of


@pytest.mark.parametrize(
    ("topology", "offered"),
    [
        ("v9:2x2", "take one of v5e, v6e, v5p, such as v5e:4x4"),
        ("v5e", "v5e comes as 1x1, 2x2, 2x4, "),
        ("v5e:4x2", "v5e comes as 1x1, 2x2, 2x4, "),
        ("v6e:4x4x4", "8x16, 16x16"),
        ("v5p:2x2x3", "v5p comes as 2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8, "),
        ("v5p:16x24x24", ", …, 16x16x24"),
    ],
)
def test_slices_that_nobody_offers_are_named(topology, offered):
    with pytest.raises(InputError) as told:
        devices_of(topology)
    assert str(told.value).startswith(f"--topology={topology}: there is none such; ")
    assert offered in str(told.value)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU's compiler, is not installed",
)
@pytest.mark.parametrize(
    "topology", ["v5e:1x1", "v5e:16x16", "v6e:2x4", "v5p:2x2x1", "v5p:4x8x8", "v5p:16x16x24"]
)
def test_the_compiler_knows_those_that_are_offered(topology):
    devices = devices_of(topology)
    assert len(devices) == math.prod(map(int, topology.partition(":")[2].split("x")))
    assert devices[0].device_kind in CHIPS
