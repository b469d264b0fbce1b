"""The model gives what transformers, PEFT and a published model give."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from langmerge_jax.adapters import load_adapter, save_adapter
from langmerge_jax.evaluation.predict import ChoiceScorer
from langmerge_jax.models.checkpoint import load_base
from langmerge_jax.models.config import RopeScaling
from langmerge_jax.models.fold import fold
from langmerge_jax.models.stacking import spec_of, split_lora, stack
from langmerge_jax.parallel.mesh import make_mesh

VARIANTS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "one key head a query head": {"num_key_value_heads": 4},
    "wide heads": {"head_dim": 16},
    "llama 3.1 frequencies": {
        "rope_theta": 500_000.0,
        "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 32),
    },
}


def torch_model(directory):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return torch, model.eval()


def our_logits(base, tokens, adapters=(), adapter_id=(0,)):
    """Logits [g, b, s, v] of token rows [g, b, s]."""
    spec = spec_of(adapters) if adapters else None
    graph, _ = split_lora(base.config, spec, base.dtype)
    lora = nnx.State({})
    if adapters:
        named = {str(i): adapter for i, adapter in enumerate(adapters)}
        lora = stack(named, base.config, spec, base.dtype)
    model = nnx.merge(graph, lora, base.params)
    hidden = model(jnp.asarray(tokens), jnp.ones(max(1, len(adapters))), jnp.asarray(adapter_id))
    return np.asarray(model.logits(hidden))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant, tiny_config, make_base):
    config = dataclasses.replace(tiny_config, **VARIANTS[variant])
    directory = make_base(config)
    torch, model = torch_model(directory)
    # Longer than the original context of the scaled variant, so that every band is used.
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 100))
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    found = our_logits(load_base(str(directory), mesh=make_mesh()), tokens[None])[0]
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_logits_equal_the_published_model(realdata):
    folder = realdata / "stories260K"
    golden = json.loads((folder / "golden.json").read_text())
    base = load_base(str(folder / "hf"), mesh=make_mesh())
    ids = golden["greedy_ids_from_bos"]
    logits = our_logits(base, np.asarray(ids)[None, None])[0, 0]
    np.testing.assert_allclose(logits[:20, :16], golden["logits_first16_per_position"], atol=1e-3)
    assert logits[:-1].argmax(axis=-1).tolist() == ids[1:]


def test_each_group_uses_its_own_adapter_as_peft_does(
    tiny_config, make_base, random_adapter, tmp_path
):
    directory = make_base(tiny_config)
    # Different ranks: the shorter one is padded.
    adapters = [random_adapter(tiny_config, seed=1), random_adapter(tiny_config, seed=2, rank=7)]
    base = load_base(str(directory), mesh=make_mesh())
    tokens = np.random.default_rng(0).integers(0, tiny_config.vocab_size, (3, 2, 20))
    order = (1, 0, 1)
    found = our_logits(base, tokens, adapters, order)
    torch, _ = torch_model(directory)
    peft = pytest.importorskip("peft", reason="peft is not installed (extra `dev`)")
    for group, number in enumerate(order):
        path = tmp_path / str(number)
        save_adapter(path, adapters[number])
        model = peft.PeftModel.from_pretrained(torch_model(directory)[1], path)
        with torch.no_grad():
            expected = model(torch.tensor(tokens[group])).logits.numpy()
        tolerance = 2e-4 * np.abs(expected).max()
        np.testing.assert_allclose(found[group], expected, atol=tolerance)


def test_choice_scores_are_the_log_likelihoods_of_each_option_alone(tiny_config, make_base):
    directory = make_base(tiny_config)
    torch, model = torch_model(directory)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, tiny_config.vocab_size, n).tolist() for n in (5, 17, 9, 30, 6)]
    for options in ([[5], [9], [7]], [[5, 6, 7], [9], [7, 8]]):
        base = load_base(str(directory), mesh=make_mesh())
        found = ChoiceScorer(base, options, batch_size=2, buckets=(16, 40))(prompts)
        for row, prompt in enumerate(prompts):
            for column, option in enumerate(options):
                with torch.no_grad():
                    logits = model(torch.tensor([prompt + option])).logits[0].double()
                likelihood = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
                expected = sum(likelihood[i, token].item() for i, token in enumerate(option))
                assert found[row, column] == pytest.approx(expected, abs=2e-4)


def test_an_adapter_survives_disk_and_stacking(tiny_config, random_adapter, tmp_path):
    adapter = random_adapter(tiny_config, seed=3)
    save_adapter(tmp_path / "a", adapter)
    spec = spec_of([adapter])
    once = stack({"a": adapter}, tiny_config, spec, jnp.float32)
    again = stack({"a": load_adapter(tmp_path / "a")}, tiny_config, spec, jnp.float32)
    for (path, first), (_, second) in zip(
        nnx.to_flat_state(once), nnx.to_flat_state(again), strict=True
    ):
        np.testing.assert_array_equal(first[...], second[...], err_msg=str(path))


def test_folded_deltas_give_the_logits_of_transformers_with_changed_weights(
    tiny_config, make_base, random_adapter
):
    directory = make_base(tiny_config)
    adapter = random_adapter(tiny_config, seed=4)
    deltas = {module: factors.delta() for module, factors in adapter.modules.items()}
    base = load_base(str(directory), mesh=make_mesh())
    tokens = np.random.default_rng(0).integers(0, tiny_config.vocab_size, (2, 20))
    before = our_logits(base, tokens[None])
    folded = dataclasses.replace(base, params=fold(base.params, deltas.items()))
    torch, model = torch_model(directory)
    with torch.no_grad():
        for module, delta in deltas.items():
            model.get_submodule(module).weight += torch.tensor(delta)
        expected = model(torch.tensor(tokens)).logits.numpy()
    found = our_logits(folded, tokens[None])[0]
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    # The base's own weights stay as they were, for the next variant.
    np.testing.assert_array_equal(our_logits(base, tokens[None]), before)
