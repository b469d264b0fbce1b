"""Sizes of a mesh that arrange no devices are refused in a line."""

import pytest

from langmerge_jax.errors import InputError
from langmerge_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, 0, 1), (0, -1, 1), (-1, -1, 1), (-2, 1, 1)])
def test_sizes_that_arrange_no_devices_are_named(sizes):
    with pytest.raises(InputError, match="devices; the product must be") as told:
        make_mesh(*sizes)
    assert "mesh data={} fsdp={} tensor={} does not arrange".format(*sizes) in str(told.value)
