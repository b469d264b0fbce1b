"""Adapters and folded models mean here what they mean to PEFT and transformers."""

import dataclasses
import functools
import pathlib

import jax.numpy as jnp
import llama_models
import ml_dtypes
import numpy as np
import pytest

from langmerge_jax.adapters import Adapter, Factors, load_adapter, save_adapter
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import Base, load_base
from langmerge_jax.models.decoding import Decoder
from langmerge_jax.models.stacking import spec_of, stack
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.training.loop import Trainer
from langmerge_jax.training.steplog import read_log
from langmerge_jax.training.steps import STEPS
from tests.doors import run_door
from tests.models.test_llama_parity import our_logits
from tests.training.test_train_step import SETTINGS

# How PEFT is told to make adapters.
CASES = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "rank-stabilised": {
        "r": 5,
        "lora_alpha": 3,
        "use_rslora": True,
        "target_modules": ["k_proj", "o_proj", "gate_proj"],
    },
    "patterns": {
        "r": 3,
        "lora_alpha": 5,
        "target_modules": ["q_proj", "k_proj", "o_proj", "up_proj"],
        "rank_pattern": {"k_proj": 6, "layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"up_proj": 12, r"layers\.0\.self_attn\.q_proj": 1},
    },
    "all-linear": {"r": 4, "lora_alpha": 4, "target_modules": "all-linear"},
    "some layers": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "layers_to_transform": [1],
    },
}


@pytest.fixture(scope="module")
def peft():
    pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    return pytest.importorskip("peft", reason="peft is not installed (extra `dev`)")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    """Writes the random checkpoint of a family, once for each dtype."""

    @functools.cache
    def write(family, dtype=np.float32):
        directory = tmp_path_factory.mktemp("bases") / "base"
        llama_models.checkpoint(directory, llama_models.VARIANTS[family], dtype=dtype)
        tokenizer.save_pretrained(directory)
        return directory

    return write


def save_by_peft(peft, base, directory, **config):
    """Saves an adapter of random factors as PEFT does; returns the model that has it."""
    model = llama_models.model_of(base)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            values = rng.normal(size=parameter.shape) / np.sqrt(parameter.shape[1])
            parameter.data.copy_(parameter.data.new_tensor(values))
    model.save_pretrained(directory)
    return model


def load_by_peft(peft, base, directory):
    return peft.PeftModel.from_pretrained(llama_models.model_of(base), directory).eval()


def fold_by_door(base, adapter, output):
    flags = [f"--adapters=a={adapter}", f"--base={base}", f"--output={output}"]
    result = run_door("merge", "--method=linear", *flags)
    assert result.returncode == 0, result.stderr
    return output


def tokens_of(family):
    return llama_models.tokens(llama_models.VARIANTS[family], length=40)


def with_and_without(model, tokens):
    """Logits of PEFT's model, and of its base alone."""
    with model.disable_adapter():
        bare = llama_models.logits_of(model, tokens)
    return llama_models.logits_of(model, tokens), bare


def assert_same(found, expected, bare):
    """Compares logits, which the adapter must have changed."""
    assert np.std(expected - bare) > 0.1 * np.std(bare)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_an_adapter_of_unequal_ranks_and_scales_gives_its_logits_in_peft(
    peft, checkpoint, tmp_path
):
    """A merge gives such adapters, and a model may have modules that they lack."""
    directory = checkpoint("llama 3.1")
    base = load_base(str(directory), mesh=make_mesh())
    rng = np.random.default_rng(0)
    modules = {}
    for layer in range(base.config.num_hidden_layers):
        for name, (i, o) in base.config.projections().items():
            rank, scale = rng.integers(1, 9), rng.choice([0.25, 1.0, 4 / 3, 2 / 3**0.5])
            block = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            modules[f"model.layers.{layer}.{block}.{name}"] = Factors(
                (rng.normal(size=(rank, i)) / np.sqrt(i)).astype(np.float32),
                (rng.normal(size=(o, rank)) / np.sqrt(rank)).astype(np.float32),
                scale,
            )
    del modules["model.layers.0.mlp.up_proj"]
    adapter = Adapter(modules, task_type="CAUSAL_LM")
    assert len({x.rank for x in modules.values()}) > 4
    assert len({x.scale for x in modules.values()}) == 4
    save_adapter(tmp_path / "adapter", adapter)
    tokens = tokens_of("llama 3.1")
    model = load_by_peft(peft, directory, tmp_path / "adapter")
    found = our_logits(base, tokens[None], [adapter])[0]
    assert_same(found, *with_and_without(model, tokens))


@pytest.fixture(scope="module", params=["llama 3.1", "llama with biases", "qwen3"])
def logits(request, peft, checkpoint, tmp_path_factory):
    """{case: (ours, PEFT's, those without the adapter)}; ours in one pass, which is faster."""
    directory, folder = checkpoint(request.param), tmp_path_factory.mktemp("adapters")
    tokens = tokens_of(request.param)
    expected = [
        with_and_without(save_by_peft(peft, directory, folder / case, **config), tokens)
        for case, config in CASES.items()
    ]
    found = our_logits(
        load_base(str(directory), mesh=make_mesh()),
        np.broadcast_to(tokens, (len(CASES), *tokens.shape)),
        [load_adapter(folder / case) for case in CASES],
        range(len(CASES)),
    )
    return {case: (found[i], *expected[i]) for i, case in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_that_peft_saves_gives_pefts_logits(case, logits):
    assert_same(*logits[case])


# Each family once, each with another kind of adapter.
@pytest.mark.parametrize(
    ("family", "case"),
    [
        ("llama 3.1", "some layers"),
        ("llama with biases", "rank-stabilised"),
        ("qwen3", "patterns"),
    ],
)
def test_a_folded_model_gives_transformers_the_logits_of_peft(
    family, case, peft, checkpoint, tmp_path
):
    directory = checkpoint(family)
    model = save_by_peft(peft, directory, tmp_path / "adapter", **CASES[case])
    folded = fold_by_door(directory, tmp_path / "adapter", tmp_path / "folded")
    tokens = tokens_of(family)
    found = llama_models.logits_of(llama_models.model_of(folded), tokens)
    assert_same(found, *with_and_without(model, tokens))


@pytest.fixture(scope="module")
def in_bfloat16(peft, checkpoint, tmp_path_factory):
    """(base, adapter, folded): a base in bfloat16, PEFT's adapter, what the door makes of them."""
    base, folder = checkpoint("llama 3.1", ml_dtypes.bfloat16), tmp_path_factory.mktemp("bfloat16")
    save_by_peft(peft, base, folder / "adapter", **CASES["all-linear"])
    return base, folder / "adapter", fold_by_door(base, folder / "adapter", folder / "folded")


def test_a_bfloat16_base_and_its_delta_are_rounded_once(peft, in_bfloat16):
    import safetensors.torch
    import torch

    base, adapter, folded = in_bfloat16
    found = safetensors.torch.load_file(folded / "model.safetensors")
    model = llama_models.model_of(base).double()
    model = peft.PeftModel.from_pretrained(model, adapter).double()
    exact = {k: x.to(torch.bfloat16) for k, x in model.merge_and_unload().state_dict().items()}
    assert exact.keys() == found.keys()
    assert {x.dtype for x in found.values()} == {torch.bfloat16}
    same = torch.cat([(x == exact[k]).ravel() for k, x in found.items() if "_proj" in k])
    # A merge computes in float32, whose error may move a sum over a tie; it is rare by far.
    assert same.double().mean() >= 0.999
    for name, tensor in found.items():
        assert "_proj" in name or tensor.equal(exact[name]), name


def test_a_folded_bfloat16_model_gives_nearly_the_logits_of_float32(peft, in_bfloat16):
    base, adapter, folded = in_bfloat16
    tokens = tokens_of("llama 3.1")
    expected = llama_models.logits_of(load_by_peft(peft, base, adapter), tokens)
    ours = load_base(str(folded), mesh=make_mesh(), dtype=jnp.bfloat16)
    error = (our_logits(ours, tokens[None])[0] - expected) / np.std(expected)
    # In standard deviations of the logits. Over three families and three seeds, the root mean
    # square was at most 0.026 here and 0.026 for transformers in bfloat16 (0.012 of it by the
    # rounded weights alone, computed in float32), the greatest error 0.40 and 0.39.
    assert np.sqrt(np.mean(error**2)) < 0.04
    assert np.abs(error).max() < 0.6


TEXTS = [
    "Once upon a time there was a green robot. The robot liked to count the stars at night.",
    "Once upon a time a robot met a whale. The whale asked the robot to sing for the moon.",
    "The robot was made of tin and had no name. The whale gave him one, and it was Bob.",
    "Bob the robot could not swim. The whale took Bob to an island with a tall red tree.",
]


@dataclasses.dataclass
class Trained:
    """An adapter trained here on a published model, and where PEFT and transformers find it."""

    base: Base
    rows: list[list[int]]
    losses: list[float]
    adapter: Adapter
    directory: pathlib.Path
    folded: pathlib.Path


@pytest.fixture(scope="module")
def trained(realdata, tmp_path_factory):
    base = load_base(str(realdata / "stories260K" / "hf"), mesh=make_mesh())
    rows = [base.tokenizer.encode(text) for text in TEXTS]
    settings = dataclasses.replace(
        SETTINGS,
        epochs=6,
        batch_size=len(rows),
        warmup=0.0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        buckets=(64,),
        checkpoint_steps=100,
        seed=0,
    )
    folder = tmp_path_factory.mktemp("trained")
    data = {"robot": [Encoded(tuple(row[:1]), tuple(row[1:])) for row in rows]}
    adapter = Trainer(base, settings).train(data, folder / "log")["robot"]
    lines = [line for line in read_log(folder / "log" / STEPS) if line["event"] == "step"]
    save_adapter(folder / "adapter", adapter)
    folded = fold_by_door(base.name, folder / "adapter", folder / "folded")
    losses = [line["loss"]["robot"] for line in lines]
    return Trained(base, rows, losses, adapter, folder / "adapter", folded)


def mean_loss(model, rows):
    """Of all next tokens, as transformers computes it."""
    import torch

    total = 0.0
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            total += model(ids, labels=ids).loss.item() * (len(row) - 1)
    return total / sum(len(row) - 1 for row in rows)


def test_a_few_steps_on_a_published_model_lower_the_loss_that_peft_finds(peft, trained):
    model = load_by_peft(peft, trained.base.name, trained.directory)
    with model.disable_adapter():
        assert trained.losses[0] == pytest.approx(mean_loss(model, trained.rows), abs=1e-4)
    assert mean_loss(model, trained.rows) < 0.5 * trained.losses[0]


def test_the_folded_export_of_what_was_trained_gives_pefts_logits(peft, trained):
    tokens = np.asarray([row[:32] for row in trained.rows])
    found = llama_models.logits_of(llama_models.model_of(trained.folded), tokens)
    model = load_by_peft(peft, trained.base.name, trained.directory)
    assert_same(found, *with_and_without(model, tokens))


def test_the_decoder_tells_the_story_that_the_folded_export_tells_in_transformers(peft, trained):
    prompt = trained.base.tokenizer.encode("Once upon a time")
    expected = llama_models.greedy_of(llama_models.model_of(trained.folded), prompt, 40)
    untrained = llama_models.greedy_of(llama_models.model_of(trained.base.name), prompt, 40)
    assert expected != untrained
    spec = spec_of([trained.adapter])
    lora = stack({"robot": trained.adapter}, trained.base.config, spec, trained.base.dtype)
    found = Decoder(trained.base, rows=1)([prompt], max_new_tokens=40, lora=lora, spec=spec)
    assert found == [expected]


@pytest.mark.parametrize(
    ("name", "module"),
    [("open-calm-1b_r1", "gpt_neox.layers.0.attention.query_key_value")],
)
def test_a_published_adapter_of_another_architecture_is_refused_by_its_module(
    name, module, realdata, tiny_config
):
    adapter = load_adapter(realdata / "lora_adapters" / name)
    with pytest.raises(InputError) as refused:
        stack({name: adapter}, tiny_config, spec_of([adapter]), jnp.float32)
    assert str(refused.value) == f"adapter {name!r}: the base model has no module {module}"
