"""However a batch is laid out or cut, training gives the same adapter."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langmerge_jax.data.batching import pack, pad
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.errors import InputError
from langmerge_jax.models.attention import Attention
from langmerge_jax.models.checkpoint import load_base
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.training import programs
from langmerge_jax.training.batches import adapter_steps
from langmerge_jax.training.loop import Trainer
from langmerge_jax.training.step import Division, cut, divisions
from langmerge_jax.training.steplog import read_log
from langmerge_jax.training.steps import STEPS
from tests.training.test_train_step import SETTINGS, assert_same, rows

# Two lengths of rows, and groups that leave the batch: more than one program.
DROPPING = dataclasses.replace(SETTINGS, epochs=1, dropout=0.2)


@pytest.fixture(scope="module")
def wide(tiny_config, make_base):
    """A base in float64, and rows of two adapters."""
    with jax.enable_x64(True):
        base = load_base(str(make_base(tiny_config)), mesh=make_mesh(), dtype=np.float64)
        yield base, {"en": rows(tiny_config, 4, seed=1), "ja": rows(tiny_config, 9, seed=2)}


@pytest.fixture(scope="module")
def expected(wide, tmp_path_factory):
    """What training gives with every row on its own, and nothing dropped."""
    base, data = wide
    settings = dataclasses.replace(SETTINGS, epochs=1)
    return Trainer(base, settings).train(data, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("backend", ["xla", "blockwise"])
def test_packed_rows_train_what_rows_apart_train(backend, wide, expected, tmp_path):
    base, data = wide
    base = dataclasses.replace(base, attention=Attention(backend, base.mesh))
    settings = dataclasses.replace(SETTINGS, epochs=1, packing=True, buckets=(16, 64))
    found = Trainer(base, settings).train(data, tmp_path)
    for name, adapter in expected.items():
        assert_same(found[name], adapter, atol=1e-9)
    steps = [line for line in read_log(tmp_path / STEPS) if line["event"] == "step"]
    # Four rows of up to 24 tokens share one or two of 64.
    assert all(line["slots"] <= 2 * 2 * 64 for line in steps)
    assert sum(line["tokens"]["ja"] for line in steps) == sum(map(len, data["ja"]))


def test_packing_is_refused_where_attention_would_look_across_examples(wide):
    base, _ = wide
    base = dataclasses.replace(base, attention=Attention("cudnn"))
    settings = dataclasses.replace(SETTINGS, packing=True)
    with pytest.raises(InputError, match=r"train\.packing: attention 'cudnn' cannot keep the ex"):
        Trainer(base, settings)


@given(st.lists(st.integers(1, 16), max_size=30))
def test_packing_shares_all_examples_out_to_rows_they_fit(lengths):
    examples = [Encoded((1,) * (n - 1), (2,), id=str(i)) for i, n in enumerate(lengths)]
    packed = pack(examples, 16)
    assert sorted(e.id for row in packed for e in row) == sorted(e.id for e in examples)
    filled = [sum(map(len, row)) for row in packed]
    assert all(0 < count <= 16 for count in filled)
    # Whatever two rows hold together would not have fitted one.
    assert all(a + b > 16 for i, a in enumerate(filled) for b in filled[:i])


def test_a_packed_row_by_hand():
    row = [Encoded((5, 6), (7, 8)), Encoded((9,), (4,))]
    found = pad([[row]], length=8, targets=4, rows=1, packed=True)
    assert found["tokens"].tolist() == [[[5, 6, 7, 8, 9, 4, 0, 0]]]
    assert found["segments"].tolist() == [[[1, 1, 1, 1, 2, 2, 0, 0]]]
    assert found["positions"].tolist() == [[[0, 1, 2, 3, 0, 1, 0, 0]]]
    assert found["target_index"].tolist() == [[[1, 2, 4, 0]]]
    assert found["target"].tolist() == [[[7, 8, 4, 0]]]
    assert found["weight"].tolist() == [[[1, 1, 1, 0]]]
    whole = pad([[row]], length=8, targets=4, rows=1, whole=True, packed=True)
    # The first token of an example is predicted from nothing, least of all from the one before.
    assert whole["target_index"].tolist() == [[[0, 1, 2, 4]]]
    assert whole["target"].tolist() == [[[6, 7, 8, 4]]]


def test_divisions_part_groups_before_rows():
    assert divisions(4, 2) == [(1, 1), (2, 1), (4, 1), (4, 2)]
    assert divisions(5, 3) == [(1, 1), (5, 1), (5, 3)]
    # Two devices share the rows of each part, but not three of the eight.
    assert divisions(1, 8, devices=2) == [(1, 1), (1, 2), (1, 4)]
    assert divisions(1, 8, devices=3) == [(1, 1), (1, 2), (1, 4), (1, 8)]
    x = np.arange(4 * 2).reshape(4, 2)
    assert cut(x, Division(2, 1)).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert cut(x, Division(4, 2)).tolist() == [[[i]] for i in range(8)]


@pytest.fixture(scope="module")
def dropping(wide, tmp_path_factory):
    """A training in which inputs are dropped, its batches whole."""
    base, data = wide
    return Trainer(base, DROPPING).train(data, tmp_path_factory.mktemp("dropping"))


def test_batches_in_parts_train_what_whole_ones_train(wide, dropping, tmp_path):
    base, data = wide
    # Rows one by one; the adapter that is left alone has too few for so many parts.
    settings = dataclasses.replace(DROPPING, accumulation=8)
    found = Trainer(base, settings).train(data, tmp_path)
    for name, adapter in dropping.items():
        assert_same(found[name], adapter, atol=1e-9)


def test_a_batch_is_cut_until_it_fits_the_memory(wide, dropping, tmp_path, monkeypatch, caplog):
    base, data = wide
    needed = []
    compile_one = programs.Program.compile

    def compiling(self, *args):
        needed.append(compile_one(self, *args))
        return needed[-1]

    # The first of the program's ways does not fit, anything smaller does.
    monkeypatch.setattr(programs.Program, "compile", compiling)
    monkeypatch.setattr(programs, "free_memory", lambda mesh: needed[0][0] - 1)
    with caplog.at_level("INFO"):
        found = Trainer(base, DROPPING).train(data, tmp_path)
    for name, adapter in dropping.items():
        assert_same(found[name], adapter, atol=1e-9)
    assert "2 x 4 rows of 32 tokens needs " in caplog.text
    assert re.search(r"compiled in .* s: 2 x 4 rows of 32 tokens in 2 parts, ", caplog.text)
    assert needed[1][0] < needed[0][0]


def test_what_does_not_fit_in_any_part_is_refused(wide, tmp_path, monkeypatch):
    base, data = wide
    monkeypatch.setattr(programs, "free_memory", lambda mesh: 2.0**10)
    one = {"en": data["en"][:1]}
    settings = dataclasses.replace(SETTINGS, batch_size=1)
    with pytest.raises(InputError, match=r"1 x 1 rows of 16 tokens needs .* MiB of a device's m"):
        Trainer(base, settings).train(one, tmp_path)


def test_rows_that_no_bucket_holds_are_refused_before_the_first_step(wide, tmp_path):
    base, data = wide
    long = Encoded((5,) * 30, (6,) * 3, id="en-7")
    line = r"adapter 'en': row en-7 has 33 tokens, the longest of train\.buckets=\(16, 32\) is sh"
    with pytest.raises(InputError, match=line):
        Trainer(base, SETTINGS).train({**data, "en": [*data["en"], long]}, tmp_path / "log")
    best = Trainer(base, dataclasses.replace(SETTINGS, keep="best"))
    with pytest.raises(InputError, match=line):
        best.train(data, tmp_path / "log", validation=data | {"en": [long]})
    with pytest.raises(InputError, match="adapter 'ja' has no rows"):
        Trainer(base, SETTINGS).train(data | {"ja": []}, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_buckets_are_rounded_up_said_and_few(wide, caplog):
    base, _ = wide
    settings = dataclasses.replace(SETTINGS, buckets=(100, 2048, 8196))
    assert settings.lengths == (100, 2048, 8320)
    with caplog.at_level("INFO"):
        Trainer(base, settings)
    assert "train.buckets: 8196 is padded to 8320" in caplog.text
    assert "2048 is" not in caplog.text
    for wrong in ((), (16, 32, 48, 64, 80), (0, 16)):
        with pytest.raises(InputError, match=r"train\.buckets=.*: give one to 4 lengths"):
            dataclasses.replace(SETTINGS, buckets=wrong)


def test_timing_alone_tells_packed_shapes_apart(wide):
    base, _ = wide
    # A row of 48 tokens has room for one example here, for two there: as many rows, or half.
    lengths = [40] * 4 + [20] * 4
    packed = [Encoded((5,) * (n - 1), (6,)) for n in lengths]
    settings = dataclasses.replace(SETTINGS, epochs=1, packing=True, buckets=(48,))
    found = Trainer(base, settings).time_alone({"en": packed}, rounds=1, timed=1)["en"]
    steps = list(adapter_steps({"en": packed}, settings, base.mesh))
    shapes = [f"{rows} x 48" for rows in (step.arrays["tokens"].shape[1] for step in steps)]
    assert found["steps"] == {shape: shapes.count(shape) for shape in shapes}
    assert len(found["steps"]) == 2
    assert found["seconds"] == pytest.approx(sum(found["seconds_a_step"].values()))


def test_each_length_and_number_of_adapters_is_compiled_once(wide, tmp_path):
    base, data = wide
    settings = dataclasses.replace(SETTINGS, epochs=2)
    Trainer(base, settings).train(data, tmp_path)
    lines = read_log(tmp_path / STEPS)
    compiled = [(x["length"], x["groups"]) for x in lines if x["event"] == "compile"]
    shapes = {(step.length, len(step.names)) for step in adapter_steps(data, settings, base.mesh)}
    assert len(shapes) > 1
    assert sorted(compiled) == sorted(shapes)
