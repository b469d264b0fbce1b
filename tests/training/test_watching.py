"""What a user can watch of a training: event files, a profile, and the step log they agree with."""

import dataclasses
import logging
import struct
import types

import pytest

from langmerge_jax.models.checkpoint import load_base
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.training.flops import step_flops
from langmerge_jax.training.loop import PROFILE, TENSORBOARD, Trainer
from langmerge_jax.training.steplog import ledger, read_log, speed
from langmerge_jax.training.steps import STEPS
from tests.training.interrupting import killed_after
from tests.training.test_train_step import SETTINGS as PLAIN
from tests.training.test_train_step import rows

# Eight steps, a checkpoint after four.
SETTINGS = dataclasses.replace(PLAIN, buckets=(32,), checkpoint_steps=8)


@pytest.fixture(scope="module")
def trained(tiny_config, make_base, tmp_path_factory):
    """A training that was killed after six steps of eight, then ended; and what it logged."""
    base = load_base(str(make_base(tiny_config)), mesh=make_mesh())
    trainer = Trainer(base, SETTINGS, tensorboard=True, profile=range(1, 3))
    data = {"en": rows(tiny_config, 8, seed=1), "ja": rows(tiny_config, 16, seed=2)}
    folder = tmp_path_factory.mktemp("trained")
    said = []
    handler = logging.Handler()
    handler.emit = lambda line: said.append(line.getMessage())
    logger = logging.getLogger("langmerge_jax.training")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with killed_after(6):
        trainer.train(data, folder)
    trainer.train(data, folder)
    logger.removeHandler(handler)
    logger.setLevel(level)
    return types.SimpleNamespace(folder=folder, data=data, config=base.config, said=said)


def events_of(path):
    """The events of a file: each has its length, a checksum, itself and a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, place = path.read_bytes(), 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        yield Event.FromString(content[place + 12 : place + 12 + length])
        place += 12 + length + 4


def shown(folder):
    """{(tag, step): value} as TensorBoard shows it: a new session ends the steps of the one before.

    Fails on a step that is shown twice.
    """
    from tensorboardX.proto.event_pb2 import SessionLog

    found = {}
    for path in sorted(folder.iterdir()):
        for event in events_of(path):
            if event.session_log.status == SessionLog.START:
                found = {key: x for key, x in found.items() if key[1] < event.step}
            for value in event.summary.value:
                key = value.tag, event.step
                assert key not in found
                found[key] = value.simple_value
    return found


def test_event_files_show_what_the_step_log_says_and_no_step_twice(trained):
    lines = [x for x in read_log(trained.folder / STEPS) if x["event"] == "step"]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    expected = {}
    for line in lines:  # Of a step done twice the later stays.
        scalars = {f"loss/{name}": x for name, x in line["loss"].items()}
        scalars |= {f"learning_rate/{name}": x for name, x in line["learning_rate"].items()}
        scalars |= speed([line], [None])
        expected |= {(k, line["step"]): x for k, x in scalars.items() if x is not None}
    assert {name for name, _ in expected} == {
        *("loss/en", "loss/ja", "learning_rate/en", "learning_rate/ja"),
        *("tokens_per_second", "padding_share", "flops_per_second"),
    }
    found = shown(trained.folder / TENSORBOARD)
    assert len(list((trained.folder / TENSORBOARD).iterdir())) == 2
    assert found == pytest.approx(expected, rel=1e-6)
    # One leaves the batch after four steps.
    assert [step for name, step in found if name == "loss/en"] == [0, 1, 2, 3]


def test_the_step_log_counts_model_flops(trained):
    cost = ledger(read_log(trained.folder / STEPS), 0)
    every = [e for x in trained.data.values() for e in x] * SETTINGS.epochs
    count = step_flops(
        trained.config,
        SETTINGS.lora(1),
        lengths=[len(e) for e in every],
        targets=sum(len(e.answer) for e in every),
    )
    assert cost["flops"] == count.total
    assert 0 < cost["padding_share"] < 1
    # A CPU's peak is not known.
    assert cost["mfu"] is None


def test_a_profile_is_recorded_of_the_steps_that_were_asked_for(trained):
    traces = list((trained.folder / PROFILE).rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 1000
    assert f"profile of steps 1 to 2: {trained.folder / PROFILE}" in trained.said
    # The second attempt begins behind them.
    assert "profile_steps=1:3: no such step was taken here, nothing is recorded" in trained.said
    stood = [x["step"] for x in read_log(trained.folder / STEPS) if x["event"] == "profile"]
    assert stood == [1, 3]
