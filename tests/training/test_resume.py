"""A killed training goes on where it stood and ends as if it had not been killed."""

import dataclasses
import errno
import os
import resource
import signal

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import load_base
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.training import steps
from langmerge_jax.training.checkpoint import Checkpoints
from langmerge_jax.training.loop import Trainer
from langmerge_jax.training.steplog import StepLog, ledger, read_log
from langmerge_jax.training.steps import CHECKPOINTS, STEPS
from tests.training.interrupting import killed_after, terminated_after
from tests.training.test_train_step import SETTINGS as PLAIN
from tests.training.test_train_step import rows

# What is dropped must be the same in a step that is done twice.
SETTINGS = dataclasses.replace(PLAIN, rslora=True, dropout=0.2)


@pytest.fixture(scope="module")
def base(tiny_config, make_base):
    return load_base(str(make_base(tiny_config)), mesh=make_mesh())


@pytest.fixture(scope="module")
def trainer(base):
    """One for all tests, so that each program is compiled once."""
    return Trainer(base, SETTINGS)


@pytest.mark.parametrize("when", [1, 2, 5, 7])
def test_a_resumed_training_gives_the_same_bits(when, trainer, tiny_config, tmp_path):
    data = {"en": rows(tiny_config, 8, seed=1), "ja": rows(tiny_config, 16, seed=2)}
    whole = trainer.train(data, tmp_path / "whole")

    with killed_after(when):
        trainer.train(data, tmp_path / "cut")
    found = trainer.train(data, tmp_path / "cut")
    for name, adapter in whole.items():
        for module, factors in adapter.modules.items():
            assert factors.scale == SETTINGS.alpha / SETTINGS.rank**0.5
            np.testing.assert_array_equal(found[name].modules[module].a, factors.a)
            np.testing.assert_array_equal(found[name].modules[module].b, factors.b)

    cost = ledger(read_log(tmp_path / "cut" / STEPS), 0)
    once = ledger(read_log(tmp_path / "whole" / STEPS), 0)
    assert (cost["attempts"], once["attempts"]) == (2, 1)
    assert cost["steps"] == once["steps"] == 8
    assert cost["tokens"] == once["tokens"]
    assert once["repeated_steps"] == 0
    assert cost["repeated_steps"] <= SETTINGS.checkpoint_steps


def test_a_save_begins_when_the_one_before_is_there(tmp_path):
    state = {"a": jax.numpy.zeros(1 << 20)}
    checkpoints = Checkpoints(tmp_path / CHECKPOINTS, every=6)
    saved = [done for done in range(1, 13) if checkpoints.due(done)]
    assert saved == [3, 6, 9, 12]
    for before, done in zip([None, *saved], saved, strict=False):
        checkpoints.save(done, state)
        # Killed now or at any step before the next save, a run loses at most the six since then.
        assert before is None or (tmp_path / CHECKPOINTS / str(before)).exists()
    checkpoints.close()


def test_checkpoints_hold_what_was_saved_and_the_newest_two_stay(tmp_path):
    state = {"a": jax.numpy.arange(3.0), "b": [jax.numpy.ones((2, 2), jax.numpy.int32)]}
    checkpoints = Checkpoints(tmp_path / CHECKPOINTS, every=1)
    assert checkpoints.restore(state)[0] == 0
    for done in (1, 2, 3):
        checkpoints.save(done, jax.tree.map(lambda x, by=done: x + by, state))
    checkpoints.close()
    done, found = Checkpoints(tmp_path / CHECKPOINTS, every=1).restore(state)
    assert done == 3
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x + 3, y), state, found)
    names = sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir())
    assert names == ["2", "3"]


def damage(directory, how):
    """Cuts all data files of a checkpoint in half, or takes them away."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size > 200]
    assert files
    for path in files:
        if how == "cut":
            os.truncate(path, path.stat().st_size // 2)
        else:
            path.unlink()


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_of_a_damaged_checkpoint_the_one_before_is_taken(how, tmp_path, caplog):
    folder = tmp_path / CHECKPOINTS
    state = {"a": jax.random.normal(jax.random.key(0), (100, 7)), "b": jax.numpy.zeros(3)}
    checkpoints = Checkpoints(folder, every=1)
    for done in (1, 2):
        checkpoints.save(done, jax.tree.map(lambda x, by=done: x + by, state))
    checkpoints.close()
    damage(folder / "2", how)
    checkpoints = Checkpoints(folder, every=1)
    done, found = checkpoints.restore(state)
    assert done == 1
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x + 1, y), state, found)
    assert f"{folder / '2'}: cannot be read" in caplog.text
    # The step is taken again, and saved again.
    checkpoints.save(2, state)
    checkpoints.close()
    assert Checkpoints(folder, every=1).restore(state)[0] == 2

    damage(folder / "1", how)
    damage(folder / "2", how)
    with pytest.raises(InputError, match=r"none of its checkpoints can be read; remove .* over"):
        Checkpoints(folder, every=1).restore(state)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_where_there_is_no_room_the_checkpoints_before_stay(tmp_path):
    folder = tmp_path / CHECKPOINTS
    state = {"a": jax.random.normal(jax.random.key(0), (1 << 20,))}
    checkpoints = Checkpoints(folder, every=2)
    checkpoints.save(1, state)
    checkpoints.save(2, state)
    checkpoints.close()
    checkpoints = Checkpoints(folder, every=2)
    # Files may have a megabyte from now on: a disk that is full.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        checkpoints.save(3, state)
        with pytest.raises(OSError, match="File too large") as refused:
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.errno == errno.EFBIG
    assert refused.value.filename == str(folder)
    done, found = Checkpoints(folder, every=2).restore(state)
    assert done == 2
    np.testing.assert_array_equal(found["a"], state["a"])
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_sigterm_ends_a_training_with_its_state_saved(trainer, tiny_config, tmp_path):
    data = {"en": rows(tiny_config, 20, seed=1)}
    whole = trainer.train(data, tmp_path / "whole")["en"]
    before = signal.getsignal(signal.SIGTERM)
    with terminated_after(3):
        trainer.train(data, tmp_path / "cut")
    assert signal.getsignal(signal.SIGTERM) is before
    found = trainer.train(data, tmp_path / "cut")["en"]
    for module, factors in whole.modules.items():
        np.testing.assert_array_equal(found.modules[module].a, factors.a)
        np.testing.assert_array_equal(found.modules[module].b, factors.b)
    cost = ledger(read_log(tmp_path / "cut" / STEPS), 0)
    assert (cost["attempts"], cost["steps"], cost["repeated_steps"]) == (2, 10, 0)


def test_jax_is_told_steps_that_follow_one_another_whatever_was_done_before(monkeypatch):
    told = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: told.append(step)
    )
    # The second goes on after its fifth step.
    for first, count in ((0, 2), (5, 3)):
        with steps._Termination(first) as termination:
            for done in range(first + 1, first + count + 1):
                termination.asked(done)
    # A number that is left out might be the one at which jax has all of them end.
    assert [x - told[0] for x in told] == [0, 1, 2, 3, 4]


def test_training_goes_on_from_an_adapter(base, trainer, tiny_config, tmp_path):
    data = {"en": rows(tiny_config, 8, seed=1)}
    first = trainer.train(data, tmp_path / "first")
    still = dataclasses.replace(SETTINGS, learning_rate=0.0, weight_decay=0.0)
    same = Trainer(base, still).train(data, tmp_path / "second", start=first)
    for module, factors in first["en"].modules.items():
        np.testing.assert_array_equal(same["en"].modules[module].b, factors.b)
        np.testing.assert_array_equal(same["en"].modules[module].a, factors.a)


def test_an_adapter_of_another_scale_is_not_trained_further(trainer, tiny_config, tmp_path):
    data = {"en": rows(tiny_config, 8, seed=1)}
    first = trainer.train(data, tmp_path / "first")["en"]
    modules = {m: dataclasses.replace(f, scale=f.scale / 2) for m, f in first.modules.items()}
    other = dataclasses.replace(first, modules=modules)
    with pytest.raises(InputError, match=r"adapter 'en': .* has rank 4 and scale 2, the config"):
        trainer.train(data, tmp_path / "second", start={"en": other})
    assert not (tmp_path / "second").exists()


def test_a_log_cut_in_its_first_line_starts_anew(tmp_path):
    (tmp_path / "log").write_text('{"event": "st')
    with StepLog(tmp_path / "log") as log:
        log.write("start", seconds=0.0, step=0, device="cpu", devices=1)
    assert [line["event"] for line in read_log(tmp_path / "log")] == ["start", "end"]


def test_ledger_by_hand(tmp_path):
    both = {"loss": {}, "tokens": {"en": 10, "de": 5}, "slots": 20, "flops": 100}
    with StepLog(tmp_path / "log") as log:
        log.write("start", seconds=2.0, step=0, device="cpu", devices=2, peak=1000.0)
        log.write("compile", seconds=1.0, length=16, groups=2)
        log.write("profile", seconds=5.0, step=0)
        for step in (0, 1):
            log.write("step", step=step, seconds=0.5, **both)
    with (tmp_path / "log").open("a") as file:
        file.write('{"event": "st')
    with StepLog(tmp_path / "log") as log:
        log.write("start", seconds=0.0, step=1, device="cpu", devices=4, peak=2000.0)
        log.write("step", step=1, seconds=0.25, **both)
        log.write("step", step=2, seconds=0.25, loss={}, tokens={"en": 7}, slots=10, flops=50)
        log.write("validation", seconds=0.5, step=3, loss={"en": 1.0})
    found = ledger(read_log(tmp_path / "log"), dollars_per_device_hour=3600.0)
    assert found == {
        "adapters": ["de", "en"],
        "steps": 3,
        "repeated_steps": 1,
        "attempts": 2,
        "device": "cpu",
        "devices": 4,
        "load_seconds": 2.0,
        "compile_seconds": 1.0,
        "checkpoint_seconds": 0,
        "validation_seconds": 0.5,
        "step_seconds": 1.5,
        "wall_seconds": 5.0,
        "device_seconds": 4.0,
        "tokens": {"en": 27, "de": 10},
        "slots": 50,
        "flops": 250,
        # 52 tokens in 70 slots, and 350 FLOPs, of all four steps that were taken.
        "tokens_per_second": 52 / 1.5,
        "padding_share": pytest.approx(18 / 70),
        "flops_per_second": 350 / 1.5,
        # One second at 1,000 FLOP/s, half a second at 2,000.
        "mfu": 350 / 2000,
        # 4 device seconds of steps; on 2 devices 3 seconds of loading and compiling, and half a
        # second of validation on 4.
        "dollars": 12.0,
    }


def test_a_ledger_of_uncounted_flops_and_unknown_peaks_says_so(tmp_path):
    step = {"loss": {}, "tokens": {"en": 10}, "slots": 20}
    with StepLog(tmp_path / "log") as log:
        log.write("start", seconds=0.0, step=0, device="cpu", devices=1, peak=None)
        log.write("step", step=0, seconds=0.5, **step, flops=100)
    lines = read_log(tmp_path / "log")
    found = ledger(lines, 0)
    assert (found["flops"], found["flops_per_second"], found["mfu"]) == (100, 200.0, None)
    # As versions before this one wrote them.
    with StepLog(tmp_path / "log") as log:
        log.write("start", seconds=0.0, step=1, device="cpu", devices=1)
        log.write("step", step=1, seconds=0.5, **step)
    found = ledger(read_log(tmp_path / "log"), 0)
    assert (found["flops"], found["flops_per_second"], found["mfu"]) == (None, None, None)
    assert (found["tokens_per_second"], found["padding_share"]) == (20.0, 0.5)
    # Nothing to do: all was done before.
    found = ledger(lines[:1], 0)
    assert (found["tokens_per_second"], found["padding_share"], found["mfu"]) == (None, None, None)
