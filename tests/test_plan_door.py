"""The plan door says what a training takes, of TPU slices and of the devices at hand."""

import importlib.util
import json
import re

import pytest

from langmerge_jax.errors import InputError
from langmerge_jax.lifecycle.planning import plan
from langmerge_jax.lifecycle.run import Run
from langmerge_jax.reporting.table import WIDTH
from langmerge_jax.training.programs import Program
from tests import tiny
from tests.doors import refused_line, run_door

FLAGS = ("--config=tests/tiny.py", "--config.data.rows.train=32", "--config.train.buckets=(128,)")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU's compiler, is not installed",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with no more of a model than its config; splash asks for heads of 128."""
    directory = tmp_path_factory.mktemp("planned")
    fields = {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "max_position_embeddings": 256,
    }
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def planned(base, *flags):
    return (*FLAGS, f"--config.base={base}", "--length=100", *flags)


def test_it_plans_for_the_devices_at_hand_takes_the_step_and_writes_nothing(
    tiny_config, make_base, tmp_path
):
    workdir, base = tmp_path / "work", make_base(tiny_config)
    flags = ["--config.train.buckets=(512,)", "--length=512", "--config.task.max_length=512"]
    flags += ["--config.train.batch_size=8", "--config.adapters_at_once=1"]
    flags += [f"--workdir={workdir}", f"--config.base={base}", "--config.dollars_per_device_hour=2"]
    result = run_door("plan", *FLAGS, *flags, "--measure")
    assert result.returncode == 0, result.stderr
    *lines, _, last = result.stdout.splitlines()
    assert max(map(len, lines)) <= WIDTH
    rows = [line.split() for line in lines if line.startswith("at hand")]
    assert rows[0][3] == "yes"
    assert "dollars" in result.stdout
    said = re.fullmatch(
        r"at hand data=2, measured: the step takes \S+ s, (\S+) times its least, and (\S+) MiB "
        r"beside its arguments, (\S+) times the plan's",
        last,
    )
    assert float(said[1]) > 0
    # Smaller than what the allocator returns at once, the figure would mean nothing.
    assert float(said[2]) > 64
    assert 0.5 < float(said[3]) < 2
    assert not workdir.exists()


@needs_libtpu
def test_it_compiles_for_a_tpu_slice(base):
    result = run_door("plan", *planned(base, "--topology=v5e:2x2", "--config.mesh.fsdp=4"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[2].split()[:3] == ["v5e:2x2", "fsdp=4", "yes"]


@needs_libtpu
def test_what_does_not_fit_is_told_of_each_mesh(base, tmp_path):
    big = json.loads((base / "config.json").read_text()) | {"hidden_size": 2**16}
    (tmp_path / "config.json").write_text(json.dumps(big | {"vocab_size": 2**19}))
    given = GIVEN | {"prices": {"v5e": 1.5}}
    text = plan(planned_run(tmp_path, tmp_path / "work"), ["v5e:2x2"], **given)
    assert " dollars" in text
    for mesh in ("fsdp=4", "fsdp=2 tensor=2"):
        assert f"v5e:2x2 {mesh} does not fit: weights and adapters take" in text
    assert "the device has 15.8 GiB; what helps: more devices" in text
    run = planned_run(tmp_path, tmp_path / "work", **{"mesh.fsdp": 4, "train.batch_size": 6})
    said = "6 rows are not spread evenly over data x fsdp = 4 devices, 4 compute the same"
    assert said in plan(run, ["v5e:2x2"], **given)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_tpu_compiler_the_extra_is_named(base):
    line = refused_line("plan", *planned(base, "--topology=v5e:2x2"))
    assert "libtpu is not installed; pip install -e '.[tpu]' brings it" in line


def test_bad_flags_are_named(base):
    line = refused_line("plan", *planned(base, "--dollars=1.2"))
    assert "--dollars=1.2: give generation=dollars, such as v5e=1.2" in line
    line = refused_line("plan", *planned(base, "--topology=v5e:2x2", "--measure"))
    assert "--measure: takes a step on the devices at hand" in line


GIVEN = {"length": 100, "answer": 16, "utilization": 0.5, "prices": {}}


@pytest.mark.parametrize(
    ("setting", "topologies", "given", "said"),
    [
        ({"adapters_at_once": -1}, [], {}, "adapters_at_once=-1: give a number of adapters, or 0"),
        ({"base": "nowhere"}, [], {}, "base model 'nowhere': no such directory"),
        ({"data.rows.train": 0}, [], {}, "data.rows.train=0 says not how many rows"),
        ({"mesh.fsdp": 0}, [], {}, "mesh data=-1 fsdp=0 tensor=1 does not arrange"),
        ({}, [], {"utilization": 2}, "--utilization=2: must be above 0"),
        ({}, [], {"answer": 100}, "--answer_length=100: must be below --length=100"),
        ({}, [], {"length": 129}, "129 tokens fit no length bucket"),
        ({}, [], {"prices": {"v5e": 1.0}}, "--dollars=v5e=…: --topology names no slice of v5e"),
    ],
)
def test_what_cannot_be_planned_is_named(base, tmp_path, setting, topologies, given, said):
    with pytest.raises(InputError) as told:
        plan(planned_run(base, tmp_path, **setting), topologies, **GIVEN | given)
    assert said in str(told.value)


@needs_libtpu
@pytest.mark.parametrize(
    ("setting", "last", "prices", "said"),
    [
        ({}, "v9:2x2", {}, "--topology=v9:2x2: there is none such"),
        ({}, "v5p:2x2x1", {"v5e": 1.2}, "v5e, v5p have prices of their own; give --dollars=v5e=…,"),
        ({"train.batch_size": 4}, "v5e:8x8", {}, "64 devices do not share train.batch_size=4 rows"),
    ],
)
def test_all_slices_are_looked_at_before_any_is_compiled(
    base, tmp_path, monkeypatch, setting, last, prices, said
):
    monkeypatch.setattr(Program, "compile", lambda *_: pytest.fail("compiles"))
    run = planned_run(base, tmp_path, **setting)
    with pytest.raises(InputError) as told:
        plan(run, ["v5e:2x2", last], **GIVEN | {"prices": prices})
    assert said in str(told.value)


def planned_run(base, tmp_path, /, **settings):
    config = tiny.get_config()
    config.cpu_devices = 0  # This process has those it has.
    config.train.buckets = (128,)
    config.update_from_flattened_dict({"base": str(base), "data.rows.train": 32} | settings)
    return Run(config.lock(), tmp_path, claim=False)
