"""What is planned without weights is what the training then does."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from langmerge_jax.models.abstract import abstract_base
from langmerge_jax.models.checkpoint import load_base
from langmerge_jax.parallel.memory import asked_for
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.parallel.topologies import Chip
from langmerge_jax.training.arguments import abstract_arguments
from langmerge_jax.training.batches import adapter_steps
from langmerge_jax.training.flops import recomputed_flops, step_flops
from langmerge_jax.training.loop import Trainer
from langmerge_jax.training.planning import roofline, step_memory
from langmerge_jax.training.programs import AdapterPrograms, Program, optimizer_of
from langmerge_jax.training.step import Division
from tests.training.test_sharding import start
from tests.training.test_train_step import SETTINGS, rows

SETTINGS = dataclasses.replace(SETTINGS, keep="best", dropout=0.1, buckets=(32,))
SHAPE = ((2, 4, 32), (2, 4, 12))


@pytest.fixture(scope="module")
def abstract(tiny_config):
    return abstract_base("base", tiny_config, mesh=make_mesh(), dtype=jnp.bfloat16)


@pytest.mark.parametrize("packing", [False, True])
def test_planned_arguments_are_those_of_the_training(tiny_config, make_base, packing):
    code = "import sys; from tests.training import test_planning as t; t.check_arguments(*sys.argv)"
    directory = str(make_base(tiny_config))
    process = start(code, directory, "packing" if packing else "", devices=2)
    assert process.communicate(timeout=300)[1].endswith("alike\n")


def check_arguments(_, directory: str, packing: str) -> None:
    """Compares shapes, dtypes and places on two devices, and the memory that these add up to."""
    settings = dataclasses.replace(SETTINGS, packing=bool(packing))
    mesh = make_mesh(1, 2, 1)
    base = load_base(directory, mesh=mesh, dtype=jnp.bfloat16)
    given, compile_ = {}, Program.compile

    def noted(program, shape, *arguments):
        given[shape] = arguments
        return compile_(program, shape, *arguments)

    Program.compile = noted
    state, advance = Trainer(base, settings).begin(["en", "ja"])
    data = {"en": rows(base.config, 4, seed=1), "ja": rows(base.config, 4, seed=2)}
    first = next(adapter_steps(data, settings, mesh))
    described = jax.tree.map(_described, state)
    advance(state, first)
    (((shape, division), (_, *real)),) = given.items()
    model = abstract_base(directory, base.config, mesh=mesh, dtype=jnp.bfloat16)
    programs = AdapterPrograms(model, settings, optimizer_of(settings), 2)
    planned = abstract_arguments(programs.state, model.params, settings, mesh, shape, division)
    planned = jax.tree.map(_described, planned)
    real = (described, *jax.tree.map(_described, tuple(real)))
    assert jax.tree.structure(planned) == jax.tree.structure(real)
    for mine, theirs in zip(jax.tree.leaves(planned), jax.tree.leaves(real), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        assert mine.where.is_equivalent_to(theirs.where, len(mine.shape)), (mine, theirs)
    assert step_memory(model, settings, shape, 2.0**40).arguments["padding"] == 0
    # Four rows are two for each device, three are three for both.
    chip = Chip(2.0**34, 1e12, 1e9, 1e9)
    four, three = (
        roofline(model, settings, ((2, x, 32), (2, x, 12)), Division(1, 1), chip) for x in (4, 3)
    )
    assert three.flops == 1.5 * four.flops
    print("alike", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class _Described:
    shape: tuple[int, ...]
    dtype: jnp.dtype
    where: jax.sharding.Sharding


def _described(x) -> _Described:
    return _Described(x.shape, x.dtype, x.sharding)


def test_kinds_of_memory_add_up_to_what_the_compiler_counts(abstract):
    settings = dataclasses.replace(SETTINGS, weight_decay=0.1)
    found = step_memory(abstract, settings, SHAPE, 2.0**40)
    assert found.fits
    assert found.division == Division(1, 1)
    assert found.arguments["padding"] == 0
    factors = found.arguments["adapters"]
    # Two moments and a count of steps an adapter; the best ones and their losses.
    assert found.arguments["optimizer"] == 2 * factors + 2 * 4
    assert found.arguments["best"] == factors + 2 * 4
    assert found.total == sum(found.arguments.values()) + found.beside


def test_a_batch_is_planned_in_parts_until_it_fits_or_cannot_be_cut(abstract):
    shape = ((2, 4, 512), (2, 4, 12))
    whole = step_memory(abstract, SETTINGS, shape, 2.0**40)
    arguments = sum(whole.arguments.values())
    room = arguments + whole.beside / 0.95
    fitting = step_memory(abstract, SETTINGS, shape, room + 1)
    assert fitting.division == Division(1, 1)
    cut = step_memory(abstract, SETTINGS, shape, room - 1024)
    assert cut.division == Division(2, 1)
    assert cut.fits
    none = step_memory(abstract, SETTINGS, shape, arguments + 4096)
    assert none.division == Division(2, 4)
    assert not none.fits
    # Where the arguments alone do not fit, nothing is compiled.
    before = step_memory(abstract, SETTINGS, shape, arguments / 2)
    assert not before.fits
    assert before.seconds == 0


def test_the_figure_is_read_from_what_the_tpu_compiler_says():
    said = "the total memory required for HLO temporaries (394.16G) exceeds available HBM (15.75G)."
    assert asked_for(said) == pytest.approx(394.16 * 2**30)
    assert asked_for("Used 512.50M of 15.75G hbm.") == pytest.approx(512.5 * 2**20)
    assert asked_for("RESOURCE_EXHAUSTED: no figure") == np.inf


def test_recomputation_is_the_forward_pass_of_layers_and_head(tiny_config):
    lengths, spec = [16, 16], SETTINGS.lora(1)
    width, inner, keys, rank, layers = 32, 48, 16, 4, 2
    shapes = [(width, width), (width, keys), (width, keys), (width, width)]
    shapes += [(width, inner)] * 2 + [(inner, width)]
    weights = sum(2 * i * o for i, o in shapes)
    lora = sum(2 * rank * (i + o) for i, o in shapes)
    pairs = 2 * 16 * 17 // 2
    rest = layers * (32 * lora + pairs * 2 * 2 * width)
    asked = {
        x: recomputed_flops(tiny_config, spec, lengths=lengths, targets=10, remat=x)
        for x in ("none", "products", "layer")
    }
    head = 10 * 2 * width * tiny_config.vocab_size
    assert asked == {
        "none": head,
        "products": head + rest,
        "layer": head + rest + layers * 32 * weights,
    }


def test_logits_of_long_rows_are_planned_twice(abstract):
    chip = Chip(2.0**34, 1e12, 1e9, 1e9)
    targets, vocabulary = 60_000, abstract.config.vocab_size
    # 2^27 logits are those of all targets of four rows, but not of eight.
    assert 4 * targets * vocabulary <= 2**27 < 8 * targets * vocabulary
    shape = ((2, 4, 2**16), (2, 4, targets))
    whole, halves = (
        roofline(abstract, SETTINGS, shape, Division(parts, 1), chip).flops for parts in (1, 2)
    )
    assert whole - halves == pytest.approx(8 * targets * 2 * 32 * vocabulary / 1e12)


def test_time_is_bound_by_what_takes_longest(abstract):
    chip = Chip(2.0**34, 1e12, 1e9, 1e9)
    found = roofline(abstract, SETTINGS, SHAPE, Division(1, 1), chip)
    flops = step_flops(abstract.config, SETTINGS.lora(2), lengths=[32] * 8, targets=96).total
    assert found.flops == pytest.approx(flops / 1e12)
    assert found.seconds == max(found.flops, found.memory, found.links)
    # Twice the parts pass over the weights twice as often, and compute as much.
    twice = roofline(abstract, SETTINGS, SHAPE, Division(2, 1), chip)
    assert twice.flops == found.flops
    assert twice.memory > found.memory
    slow = dataclasses.replace(chip, bandwidth=1.0)
    slow = roofline(abstract, SETTINGS, SHAPE, Division(1, 1), slow)
    assert slow.seconds == slow.memory == pytest.approx(found.memory * 1e9)
    assert found.links == 0  # One device has no others.
