"""After each epoch adapters are validated, and the best factors kept."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from langmerge_jax.data.batching import pad
from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import load_base
from langmerge_jax.models.llama import Llama
from langmerge_jax.models.lora import Active
from langmerge_jax.models.stacking import spec_of, stack
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.training import programs
from langmerge_jax.training.loop import Trainer
from langmerge_jax.training.step import TrainState, divisions, keep_best, token_losses
from langmerge_jax.training.steplog import ledger, read_log
from langmerge_jax.training.steps import STEPS
from tests.training.interrupting import killed_after
from tests.training.test_train_step import SETTINGS, rows

# So high a rate that some epoch but the last is best.
SETTINGS = dataclasses.replace(
    SETTINGS, epochs=4, learning_rate=0.1, buckets=(32,), keep="best", dropout=0.1
)


@pytest.fixture(scope="module")
def base(tiny_config, make_base):
    return load_base(str(make_base(tiny_config)), mesh=make_mesh())


@pytest.fixture(scope="module")
def trainer(base):
    return Trainer(base, SETTINGS)


@pytest.fixture(scope="module")
def data(tiny_config):
    return {"en": rows(tiny_config, 8, seed=1), "ja": rows(tiny_config, 12, seed=2)}


@pytest.fixture(scope="module")
def validation(tiny_config):
    return {"en": rows(tiny_config, 6, seed=3), "ja": rows(tiny_config, 5, seed=4)}


@pytest.fixture(scope="module")
def trained(trainer, data, validation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return trainer.train(data, folder, validation=validation), folder


def loss_of(base, adapter, examples):
    """Mean over all tokens to predict, each row on its own, outside of the training's programs."""
    spec = spec_of([adapter])
    lora = stack({"one": adapter}, base.config, spec, base.dtype)
    model = Llama(base.config, spec, rngs=nnx.Rngs(params=0))
    graph, _, _ = nnx.split(model, type(nnx.to_flat_state(lora)[0][1]), ...)
    model = nnx.merge(graph, lora, base.params)
    total, count = 0.0, 0
    for example in examples:
        batch = pad([[[example]]], len(example), len(example.answer), 1)
        hidden = model(jnp.asarray(batch["tokens"]), Active(jnp.zeros(1, int), jnp.ones(1)))
        total += float(token_losses(model, hidden, batch).sum())
        count += len(example.answer)
    return total / count


def test_the_epoch_that_did_best_on_validation_is_kept(base, trained, validation):
    adapters, folder = trained
    losses = {name: [] for name in validation}
    for line in read_log(folder / STEPS):
        if line["event"] == "validation":
            for name, loss in line["loss"].items():
                losses[name].append((line["step"], loss))
    # 'en' has two steps an epoch, 'ja' three.
    assert [step for step, _ in losses["en"]] == [2, 4, 6, 8]
    assert [step for step, _ in losses["ja"]] == [3, 6, 9, 12]
    best_is_last = []
    for name, adapter in adapters.items():
        each = [loss for _, loss in losses[name]]
        assert loss_of(base, adapter, validation[name]) == pytest.approx(min(each), rel=1e-5)
        best_is_last.append(each[-1] == min(each))
    assert not all(best_is_last)


def test_validation_in_parts_finds_the_same_losses(
    base, trainer, trained, validation, monkeypatch, caplog
):
    def losses(trainer):
        state, _ = trainer.begin(["en", "ja"], trained[0])
        return trainer._validate(["en", "ja"], validation, state, ["en", "ja"])[1]

    whole = losses(trainer)
    # As if only one row fitted the memory.
    monkeypatch.setattr(programs, "divisions", lambda *shape: divisions(*shape)[-1:])
    with caplog.at_level("INFO"):
        assert losses(Trainer(base, SETTINGS)) == pytest.approx(whole, rel=1e-5)
    assert "1 x 4 rows of 32 tokens in 4 parts" in caplog.text


def test_validation_has_seconds_of_its_own(trained):
    cost = ledger(read_log(trained[1] / STEPS), 0)
    assert cost["validation_seconds"] > 0
    assert cost["wall_seconds"] > cost["validation_seconds"]


@pytest.mark.parametrize("when", [3, 8])
def test_a_killed_training_keeps_the_same_best(when, trainer, trained, data, validation, tmp_path):
    with killed_after(when):
        trainer.train(data, tmp_path, validation=validation)
    found = trainer.train(data, tmp_path, validation=validation)
    for name, adapter in trained[0].items():
        for module, factors in adapter.modules.items():
            np.testing.assert_array_equal(found[name].modules[module].a, factors.a)
            np.testing.assert_array_equal(found[name].modules[module].b, factors.b)
    assert ledger(read_log(tmp_path / STEPS), 0)["attempts"] == 2


def test_a_loss_that_is_no_number_is_never_best():
    state = TrainState({"a": jnp.ones(1)}, None, {"a": jnp.zeros(1)}, jnp.array([jnp.inf]))
    state = keep_best(state, jnp.array(0), jnp.array(jnp.nan))
    assert (state.best["a"].tolist(), state.best_loss.tolist()) == ([0.0], [float("inf")])
    state = keep_best(state, jnp.array(0), jnp.array(2.0))
    assert (state.best["a"].tolist(), state.best_loss.tolist()) == ([1.0], [2.0])


def test_a_validation_that_is_not_finite_stops_the_run(base, data, validation, tmp_path):
    # One step an epoch: its loss is finite, what it makes of the factors is not.
    wild = dataclasses.replace(SETTINGS, learning_rate=1e38, max_grad_norm=1e38)
    with pytest.raises(FloatingPointError, match=r"adapter 'en' on validation is (nan|inf); lower"):
        Trainer(base, wild).train(
            {"en": data["en"][:4]}, tmp_path, validation={"en": validation["en"]}
        )


def test_without_validation_rows_there_is_no_best(trainer, data, tmp_path):
    with pytest.raises(InputError, match=r"adapter 'en' has no validation rows .*keep='last'"):
        trainer.train(data, tmp_path / "log")
    assert not (tmp_path / "log").exists()
