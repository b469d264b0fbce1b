"""Training gives what PEFT and torch give, and each adapter what it would get alone."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from langmerge_jax.adapters import save_adapter
from langmerge_jax.data.batching import pad, training_batches
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import load_base
from langmerge_jax.models.llama import Llama
from langmerge_jax.models.lora import LoraSpec
from langmerge_jax.models.stacking import init_lora
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.training.loop import Trainer
from langmerge_jax.training.settings import OWN, TrainSettings, adapter_seed
from langmerge_jax.training.step import learning_rate, token_losses
from langmerge_jax.training.steplog import read_log
from langmerge_jax.training.steps import STEPS

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SETTINGS = TrainSettings(
    rank=4,
    alpha=8.0,
    rslora=False,
    dropout=0.0,
    targets=TARGETS,
    epochs=2,
    batch_size=4,
    learning_rate=1e-2,
    warmup=0.2,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.1,
    max_grad_norm=0.5,
    buckets=(16, 32),
    packing=False,
    loss="answers",
    remat="none",
    accumulation=0,
    keep="last",
    checkpoint_steps=2,
    seed=3,
)


def rows(config, count, seed):
    rng = np.random.default_rng(seed)

    def draw(longest):
        return tuple(rng.integers(4, config.vocab_size, rng.integers(1, longest)).tolist())

    return [Encoded(draw(20), draw(4)) for _ in range(count)]


def assert_same(found, expected, atol):
    for module, factors in expected.modules.items():
        np.testing.assert_allclose(found.modules[module].a, factors.a, atol=atol, err_msg=module)
        np.testing.assert_allclose(found.modules[module].b, factors.b, atol=atol, err_msg=module)


@pytest.mark.parametrize(
    ("loss", "remat", "epochs"),
    [
        ("answers", "none", 7),
        ("answers", "layer", 2),
        ("answers", "products", 2),
        ("all", "layer", 2),
    ],
)
def test_training_equals_torch_and_peft(loss, remat, epochs, tiny_config, make_base, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    peft = pytest.importorskip("peft", reason="peft is not installed (extra `dev`)")
    import transformers

    directory = make_base(tiny_config)
    base = load_base(str(directory), mesh=make_mesh())
    data = rows(tiny_config, 10, seed=0)
    fresh = dataclasses.replace(SETTINGS, learning_rate=0.0, weight_decay=0.0, epochs=1)
    start = Trainer(base, fresh).train({"en": data}, tmp_path / "none")["en"]
    settings = dataclasses.replace(SETTINGS, loss=loss, remat=remat, epochs=epochs)
    found = Trainer(base, settings).train({"en": data}, tmp_path / "log")["en"]

    save_adapter(tmp_path / "start", start)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "start", is_trainable=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    steps = list(training_batches(data, rows=4, epochs=epochs, seed=3, name="en"))
    total_steps, losses = 3 * epochs, []
    warmup = round(0.2 * total_steps)
    for number, group in enumerate(steps):
        optimizer.zero_grad()
        total, count = 0.0, 0
        for example in group:
            ids = torch.tensor([[*example.prompt, *example.answer]])
            labels, first = ids.clone(), 1 if loss == "all" else len(example.prompt)
            labels[:, :first] = -100
            mean = model(ids, labels=labels).loss
            total, count = total + mean * (len(example) - first), count + len(example) - first
        losses.append((total / count).item())
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        for options in optimizer.param_groups:
            ramp = (number + 1) / warmup
            options["lr"] = 1e-2 * min(ramp, (total_steps - number) / (total_steps - warmup))
        optimizer.step()
    lines = [x for x in read_log(tmp_path / "log" / STEPS) if x["event"] == "step"]
    np.testing.assert_allclose([x["loss"]["en"] for x in lines], losses, rtol=0, atol=1e-4)
    weights = {k: v.numpy() for k, v in peft.get_peft_model_state_dict(model).items()}
    moved = 0.0
    for module, factors in found.modules.items():
        a = weights[f"base_model.model.{module}.lora_A.weight"]
        b = weights[f"base_model.model.{module}.lora_B.weight"]
        np.testing.assert_allclose(factors.a, a, atol=2e-4, err_msg=module)
        np.testing.assert_allclose(factors.b, b, atol=2e-4, err_msg=module)
        moved = max(moved, np.abs(b).max())
    assert moved > 1e-2


def test_adapters_trained_together_equal_each_trained_alone(tiny_config, make_base, tmp_path):
    with jax.enable_x64(True):
        base = load_base(str(make_base(tiny_config)), mesh=make_mesh(), dtype=np.float64)
        # Unequal sizes: 'en' leaves the batch long before 'ja', 'de' has a short last batch.
        data = {
            "en": rows(tiny_config, 4, seed=1),
            "ja": rows(tiny_config, 16, seed=2),
            "de": rows(tiny_config, 9, seed=3),
        }
        # And one has epochs and a learning rate of its own.
        own = {"de": {"epochs": 1, "learning_rate": 3e-2, "warmup": 0.5}}
        settings = dataclasses.replace(SETTINGS, own=own)
        together = Trainer(base, settings).train(data, tmp_path / "log")
        for name, its in data.items():
            settings = dataclasses.replace(SETTINGS, **own.get(name, {}))
            alone = Trainer(base, settings).train({name: its}, tmp_path / name)[name]
            assert_same(together[name], alone, atol=1e-9)


def test_the_step_log_names_loss_and_tokens_of_every_live_adapter(tiny_config, make_base, tmp_path):
    base = load_base(str(make_base(tiny_config)), mesh=make_mesh())
    data = {"en": rows(tiny_config, 4, seed=1), "ja": rows(tiny_config, 8, seed=2)}
    Trainer(base, SETTINGS).train(data, tmp_path / "log")
    lines = [line for line in read_log(tmp_path / "log" / STEPS) if line["event"] == "step"]
    assert [sorted(line["loss"]) for line in lines] == [["en", "ja"]] * 2 + [["ja"]] * 2
    seen = sum(line["tokens"]["ja"] for line in lines)
    assert seen == SETTINGS.epochs * sum(map(len, data["ja"]))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(
    tiny_config, make_base, tmp_path
):
    base = load_base(str(make_base(tiny_config)), mesh=make_mesh())
    drawn = rows(tiny_config, 16, seed=1)
    data = {"en": [dataclasses.replace(x, id=f"en-{i}") for i, x in enumerate(drawn)]}
    wild = dataclasses.replace(SETTINGS, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(FloatingPointError, match="adapter 'en' is nan at step") as error:
        Trainer(base, wild).train(data, tmp_path / "log")
    number = int(re.search(r"at step (\d+)", str(error.value))[1])
    batches = list(training_batches(data["en"], rows=4, epochs=2, seed=3, name="en"))
    assert f"on rows {', '.join(x.id for x in batches[number])};" in str(error.value)


def test_what_an_adapter_may_not_have_of_its_own_is_refused():
    with pytest.raises(InputError, match=r"train\.own\.de\.rank: an adapter may have epochs, l"):
        dataclasses.replace(SETTINGS, own={"de": {"epochs": 1, "rank": 8}})


@pytest.mark.parametrize(("name", "value"), [("loss", "prompts"), ("remat", "dots")])
def test_unknown_words_of_the_settings_are_refused(name, value):
    with pytest.raises(InputError, match=f"train.{name}='{value}': choose among "):
        dataclasses.replace(SETTINGS, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "limits"),
    [
        ("epochs", 0, "at least 1"),
        ("batch_size", -1, "at least 1"),
        ("accumulation", -1, "at least 0"),
        ("warmup", 1.5, "between 0 and 1"),
        ("learning_rate", math.nan, "at least 0"),
        ("max_grad_norm", 0.0, "at least "),
        ("b1", 1.0, "between 0 and "),
    ],
)
def test_numbers_of_the_settings_have_limits(name, value, limits):
    with pytest.raises(InputError, match=f"train.{name}={value}: must be {limits}"):
        dataclasses.replace(SETTINGS, **{name: value})
    if name in OWN:
        with pytest.raises(InputError, match=f"train.own.de.{name}={value}: must be {limits}"):
            dataclasses.replace(SETTINGS, own={"de": {name: value}})


def test_words_and_parts_are_no_numbers_of_epochs():
    with pytest.raises(InputError, match=r"train\.own\.de\.epochs=1\.5: must be a whole number"):
        dataclasses.replace(SETTINGS, own={"de": {"epochs": 1.5}})
    with pytest.raises(InputError, match=r"train\.own\.de\.warmup='1': must be a number"):
        dataclasses.replace(SETTINGS, own={"de": {"warmup": "1"}})


@pytest.mark.parametrize(("name", "value"), [("rank", 0), ("dropout", 1.0), ("dropout", -0.1)])
def test_the_shape_of_adapters_has_limits(name, value):
    with pytest.raises(InputError, match=rf"lora\.{name}={value}: must be at least "):
        dataclasses.replace(SETTINGS, **{name: value})


@pytest.fixture(scope="module")
def head_and_batch(tiny_config):
    """A model with a wide head, hidden states, and targets of a batch of two groups."""
    config = dataclasses.replace(tiny_config, vocab_size=1003)
    model = Llama(config, rngs=nnx.Rngs(params=0))
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 20, config.hidden_size))
    rng = np.random.default_rng(0)
    groups = [
        [[Encoded(tuple(rng.integers(0, 1003, n).tolist()), (7, 8))] for n in some]
        for some in ((3, 18, 9), (1, 12))
    ]
    return model, hidden, pad(groups, 20, 19, 3, whole=True)


@pytest.mark.parametrize("most", [1, 6 * 1003 * 5, 6 * 1003 * 18])
def test_a_loss_by_chunks_is_the_loss(most, head_and_batch):
    model, hidden, batch = head_and_batch
    graph, params = nnx.split(model)

    def loss(params, hidden, most):
        losses = token_losses(nnx.merge(graph, params), hidden, batch, most=most)
        return (losses * jnp.arange(19)).sum(), losses

    def both(most):
        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        return jax.jit(gradient, static_argnums=2)(params, hidden, most)

    chunked, whole = both(most), both(6 * 1003 * 19)
    assert not np.array_equal(np.asarray(whole[1]), np.zeros((2, 3, 19)))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-4), chunked, whole
    )


def test_no_array_of_all_logits_exists(tiny_config):
    """8,192 tokens of a vocabulary of 128,256 would have 4.2 GB of logits in float32."""
    config = dataclasses.replace(tiny_config, vocab_size=128_256)
    model = nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(params=0)))
    graph, params = nnx.split(model)
    shape = (1, 8, 1024)
    batch = {
        "target_index": jax.ShapeDtypeStruct(shape, jnp.int32),
        "target": jax.ShapeDtypeStruct(shape, jnp.int32),
        "weight": jax.ShapeDtypeStruct(shape, jnp.float32),
    }

    def loss(hidden, params, batch):
        return token_losses(nnx.merge(graph, params), hidden, batch).sum()

    hidden = jax.ShapeDtypeStruct((*shape, config.hidden_size), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(hidden, params, batch).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**31


def test_fresh_adapters_start_as_peft_starts_them(tiny_config):
    lora = init_lora(tiny_config, LoraSpec(2, 64, TARGETS), [adapter_seed("en", 0), 1])
    for path, value in nnx.to_flat_state(lora):
        value = np.asarray(value[...])
        if path[-1] == "lora_b":
            assert not value.any()
        else:
            bound = value.shape[2] ** -0.5
            assert np.abs(value).max() <= bound
            # A uniform draw over +-bound has deviation bound / sqrt(3).
            assert value.std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_learning_rate_warms_up_and_ends_near_zero():
    rates = [learning_rate(i, 100, peak=1.0, warmup=0.1) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0
    assert rates[-1] == pytest.approx(1 / 90)


def test_padding_and_empty_rows_weigh_nothing():
    example = Encoded((5, 6, 7), (8, 9))
    batch = pad([[[example]]], length=8, targets=3, rows=2)
    assert batch["tokens"].tolist() == [[[5, 6, 7, 8, 9, 0, 0, 0], [0] * 8]]
    assert batch["target_index"][0, 0, :2].tolist() == [2, 3]
    assert batch["target"][0, 0, :2].tolist() == [8, 9]
    assert batch["weight"].tolist() == [[[1, 1, 0], [0, 0, 0]]]
