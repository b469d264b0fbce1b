"""Training on many devices, and by two processes, gives what training on one device gives."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from langmerge_jax.models.checkpoint import load_base
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.training.loop import Trainer
from langmerge_jax.training.steplog import ledger, read_log
from langmerge_jax.training.steps import STEPS
from tests.training.interrupting import terminated_after
from tests.training.test_train_step import SETTINGS, rows

ROOT = pathlib.Path(__file__).parents[2]
# 20 steps of the one adapter, 8 of the other; of one length, as each is compiled anew.
SETTINGS = dataclasses.replace(
    SETTINGS, epochs=4, batch_size=8, dropout=0.1, remat="layer", buckets=(32,)
)
MESHES = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tensor": {"data": 1, "tensor": 8},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
}


def train(directory: str, mesh: dict[str, int], folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Trains in float64 and returns all factors by name."""
    # In all threads: checkpoints are read by another.
    jax.config.update("jax_enable_x64", True)
    try:
        base = load_base(directory, mesh=make_mesh(**mesh), dtype=np.float64)
        data = {"en": rows(base.config, 40, seed=1), "ja": rows(base.config, 16, seed=2)}
        adapters = Trainer(base, SETTINGS).train(data, folder)
    finally:
        jax.config.update("jax_enable_x64", False)
    return {
        f"{name}/{module}/{side}": getattr(factors, side)
        for name, adapter in adapters.items()
        for module, factors in adapter.modules.items()
        for side in ("a", "b")
    }


def start(code: str, *arguments: str, devices: int) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"XLA_FLAGS": flags.strip(), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-9, err_msg=name)


@pytest.fixture(scope="module")
def directory(tiny_config, make_base):
    return str(make_base(tiny_config))


@pytest.fixture(scope="module")
def expected(directory, tmp_path_factory):
    found = train(directory, {}, tmp_path_factory.mktemp("one"))
    assert max(np.abs(value).max() for name, value in found.items() if name.endswith("b")) > 1e-2
    return found


def train_until(directory: str, mesh: dict[str, int], folder: pathlib.Path, last: int) -> None:
    """Trains like `train`, but is sent SIGTERM after some steps."""
    with terminated_after(last - 1):
        train(directory, mesh, folder)


def shares(directory: str, mesh: dict[str, int]) -> set[float]:
    """What share of each array of a training's state one device holds."""
    base = load_base(directory, mesh=make_mesh(**mesh))
    state, _ = Trainer(base, SETTINGS).begin(["en"])
    leaves = [x for x in jax.tree.leaves(state) if x.ndim > 1]
    return {x.addressable_shards[0].data.size / x.size for x in leaves}


EIGHT_DEVICES = """
import json, pathlib, sys
import jax, numpy as np
from tests.training.test_sharding import shares, train, train_until

assert jax.device_count() == 8
directory, folder = sys.argv[1], pathlib.Path(sys.argv[2])
meshes = json.loads(sys.argv[3])
for name, mesh in meshes.items():
    np.savez(folder / name, **train(directory, mesh, folder / f"log-{name}"))
train_until(directory, meshes["all"], folder / "cut", 12)
found = {name: sorted(shares(directory, mesh)) for name, mesh in meshes.items()}
(folder / "shares.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def sharded(directory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight")
    process = start(EIGHT_DEVICES, directory, str(folder), json.dumps(MESHES), devices=8)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-2000:]
    return folder


@pytest.mark.parametrize("mesh", MESHES)
def test_each_axis_of_eight_devices_gives_what_one_device_gives(mesh, sharded, expected):
    assert_same(np.load(sharded / f"{mesh}.npz"), expected)


def test_factors_and_optimizer_are_spread_as_the_weights_are(sharded):
    found = json.loads((sharded / "shares.json").read_text())
    assert found["data"] == [1.0]
    # Of A or B, one has the axis that is spread; the other is whole.
    assert found["fsdp"][0] == 1 / 8
    assert found["tensor"][0] == 1 / 8
    assert set(found["all"]) == {1 / 2}


def test_a_training_goes_on_on_another_number_of_devices(sharded, directory, expected):
    assert_same(train(directory, {}, sharded / "cut"), expected)
    cost = ledger(read_log(sharded / "cut" / STEPS), 0)
    assert (cost["steps"], cost["attempts"], cost["repeated_steps"]) == (20, 2, 0)
    starts = [x for x in read_log(sharded / "cut" / STEPS) if x["event"] == "start"]
    assert [(x["step"], x["devices"]) for x in starts] == [(0, 8), (starts[1]["step"], 1)]
    assert 12 <= starts[1]["step"] < 20


TWO_PROCESSES = """
import pathlib, sys
import jax, numpy as np
from tests.training.test_sharding import train

folder, number = pathlib.Path(sys.argv[2]), int(sys.argv[4])
jax.distributed.initialize(sys.argv[3], num_processes=2, process_id=number)
assert (jax.device_count(), jax.local_device_count()) == (4, 2)
found = train(sys.argv[1], {"data": 2, "fsdp": 2}, folder / "log")
np.savez(folder / f"found{number}", **found)
"""


def test_two_processes_of_two_devices_give_what_one_device_gives(directory, expected, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        start(TWO_PROCESSES, directory, str(tmp_path), address, str(number), devices=2)
        for number in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-2000:]
    finally:  # One alone would wait for the other.
        for process in processes:
            process.kill()
    for number in range(2):
        assert_same(np.load(tmp_path / f"found{number}.npz"), expected)
    # One of them writes the log.
    cost = ledger(read_log(tmp_path / "log" / STEPS), 0)
    assert (cost["steps"], cost["attempts"], cost["devices"]) == (20, 1, 4)
