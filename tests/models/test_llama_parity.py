"""The model gives what transformers, PEFT and a published model give."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import llama_models
import numpy as np
import optax
import pytest
from flax import nnx

from langmerge_jax.adapters import load_adapter, save_adapter
from langmerge_jax.errors import InputError
from langmerge_jax.evaluation.predict import ChoiceScorer, batches, of_base
from langmerge_jax.models.checkpoint import load_base
from langmerge_jax.models.config import from_hf, inverse_frequencies
from langmerge_jax.models.decoding import Decoder
from langmerge_jax.models.fold import fold
from langmerge_jax.models.lora import Active
from langmerge_jax.models.stacking import spec_of, split_lora, stack, unstack
from langmerge_jax.parallel.mesh import make_mesh

GOLDEN = json.loads(llama_models.GOLDEN.read_text())


@pytest.fixture(scope="module")
def directories(tmp_path_factory, tokenizer):
    """A random checkpoint of every family, by name."""
    folder = tmp_path_factory.mktemp("families")
    found = {}
    for name, fields in llama_models.VARIANTS.items():
        found[name] = llama_models.checkpoint(folder / name, fields)
        tokenizer.save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def live():
    """Skips where torch, transformers' reference, is missing."""
    pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    return llama_models


def torch_model(directory):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    return torch, llama_models.model_of(directory)


def our_logits(base, tokens, adapters=(), adapter_id=(0,)):
    """Logits [g, b, s, v] of token rows [g, b, s]."""
    spec = spec_of(adapters) if adapters else None
    graph, _ = split_lora(base.config, spec, base.dtype, attention=base.attention)
    lora = nnx.State({})
    if adapters:
        named = {str(i): adapter for i, adapter in enumerate(adapters)}
        lora = stack(named, base.config, spec, base.dtype)
    active = Active(jnp.asarray(adapter_id), jnp.ones(max(1, len(adapters))))
    return np.asarray(run(graph, lora, base.params, jnp.asarray(tokens), active))


@functools.partial(jax.jit, static_argnums=0)
def run(graph, lora, params, tokens, active):
    model = nnx.merge(graph, lora, params)
    return model.logits(model(tokens, active))


def our_gradients(base, adapter, tokens):
    """Gradients of an adapter under the mean loss over all next tokens, as an Adapter."""
    spec = spec_of([adapter])
    scale = next(iter(adapter.modules.values())).scale
    graph, _ = split_lora(base.config, spec, base.dtype)
    lora = stack({"": adapter}, base.config, spec, base.dtype, scaled=False)

    def loss(lora):
        model = nnx.merge(graph, lora, base.params)
        active = Active(jnp.zeros(1, jnp.int32), jnp.full(1, scale))
        logits = model.logits(model(tokens[None], active))[0, :, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return unstack(jax.grad(loss)(lora), names=[""], scale=scale, base="")[""]


@pytest.mark.parametrize("name", llama_models.VARIANTS)
def test_logits_equal_transformers(name, directories):
    tokens = llama_models.tokens(llama_models.VARIANTS[name])
    found = our_logits(load_base(str(directories[name]), mesh=make_mesh()), tokens[None])[0]
    excerpt = llama_models.excerpt(found)
    np.testing.assert_allclose(excerpt, GOLDEN[name]["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", llama_models.VARIANTS)
def test_all_logits_equal_those_of_transformers_here(name, directories, live):
    tokens = llama_models.tokens(llama_models.VARIANTS[name])
    expected = live.logits_of(live.model_of(directories[name]), tokens)
    assert np.std(expected) > 0.3  # Logits near zero would hide errors.
    found = our_logits(load_base(str(directories[name]), mesh=make_mesh()), tokens[None])[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scaling", [None, 8.0, 32.0], ids=["plain", "llama 3.1", "llama 3.2"])
def test_frequencies_are_rounded_as_transformers_rounds_them(scaling, live):
    """Another rounding is an angle of 1e-4 after a thousand positions."""
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    found, expected = [], []
    for theta, width in itertools.product((1e4, 5e5, 1e6, 8e6), (8, 16, 64, 96, 128)):
        rope = {"rope_type": "default", "rope_theta": theta}
        if scaling:
            rope |= {"rope_type": "llama3", "factor": scaling, "low_freq_factor": 1.0}
            rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        fields = llama_models.VARIANTS["llama 3.0"] | {"head_dim": width, "rope_parameters": rope}
        fields |= {"max_position_embeddings": 131072}
        fields.pop("rope_theta")
        theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**fields)).inv_freq.numpy()
        ours = np.array(inverse_frequencies(from_hf(fields, "here")), np.float32)
        np.testing.assert_allclose(ours, theirs, rtol=5e-7)
        found, expected = [*found, *ours], [*expected, *theirs]
    # A power may be rounded otherwise, by another library.
    assert np.mean(np.array(found) == np.array(expected)) > 0.95


@pytest.mark.parametrize("name", ["llama 3.1", "llama 3.2, tied", "mistral"])
def test_logits_far_into_a_text_equal_those_of_transformers(name, directories, live):
    tokens = llama_models.tokens(llama_models.VARIANTS[name], rows=1, length=2000)
    expected = live.logits_of(live.model_of(directories[name]), tokens)
    found = our_logits(load_base(str(directories[name]), mesh=make_mesh()), tokens[None])[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", llama_models.VARIANTS)
def test_adapter_gradients_equal_pefts(name, directories, tmp_path):
    fields = llama_models.VARIANTS[name]
    adapter = load_adapter(llama_models.write_adapter(tmp_path / "adapter", fields))
    base = load_base(str(directories[name]), mesh=make_mesh())
    found = our_gradients(base, adapter, llama_models.tokens(fields)[:, :40])
    largest = 0.0
    for tensor, expected in GOLDEN[name]["gradients"].items():
        module, _, factor = tensor.removeprefix("base_model.model.").partition(".lora_")
        factors = found.modules[module]
        value = factors.a if factor == "A.weight" else factors.b
        excerpt = llama_models.gradient_excerpt(value)
        np.testing.assert_allclose(excerpt, expected, rtol=0, atol=1e-4, err_msg=tensor)
        largest = max(largest, np.abs(expected).max())
    assert largest > 1e-2


@pytest.mark.parametrize("name", ["llama 3.1", "llama with biases", "qwen2", "qwen3"])
def test_all_gradients_equal_those_of_peft_here(name, directories, live, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed (extra `dev`)")
    fields = llama_models.VARIANTS[name]
    directory = llama_models.write_adapter(tmp_path / "adapter", fields)
    tokens = llama_models.tokens(fields)[:, :40]
    base = load_base(str(directories[name]), mesh=make_mesh())
    found = our_gradients(base, load_adapter(directory), tokens)
    expected = live.gradients_of(directories[name], directory, tokens)
    assert len(expected) == 2 * len(found.modules)
    for module, factors in found.modules.items():
        for letter, value in (("A", factors.a), ("B", factors.b)):
            tensor = f"base_model.model.{module}.lora_{letter}.weight"
            np.testing.assert_allclose(value, expected[tensor], atol=1e-4, err_msg=tensor)


@pytest.mark.parametrize("name", llama_models.VARIANTS)
def test_greedy_continuations_equal_transformers_token_for_token(name, directories):
    tokens = llama_models.tokens(llama_models.VARIANTS[name])
    prompts = [tokens[0, :5].tolist(), tokens[1, :50].tolist()]
    base = load_base(str(directories[name]), mesh=make_mesh())
    assert Decoder(base, rows=2)(prompts, max_new_tokens=40) == GOLDEN[name]["greedy"]


def test_golden_continuations_are_those_of_transformers_here(directories, live):
    for name, fields in llama_models.VARIANTS.items():
        tokens, model = live.tokens(fields), live.model_of(directories[name])
        prompts = tokens[0, :5].tolist(), tokens[1, :50].tolist()
        assert [live.greedy_of(model, x, 40) for x in prompts] == GOLDEN[name]["greedy"], name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gemma3"}, "model_type='gemma3' is not supported; supported: llama"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "RoPE type 'yarn'.*default, llama3"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ({"model_type": "mistral", "sliding_window": 100}, "sliding_window=100 .* to null"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
        ({"layer_types": ["sliding_attention"]}, "sliding_attention"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not a multiple"),
    ],
)
def test_what_is_not_implemented_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        from_hf(llama_models.VARIANTS["llama 3.1"] | change, "config.json")


@pytest.mark.parametrize("name", llama_models.VARIANTS)
def test_a_config_survives_writing(name):
    config = from_hf(llama_models.VARIANTS[name], "here")
    assert from_hf(config.to_hf(), "there") == config


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
        scorer = ChoiceScorer(base, options, batch_size=2, buckets=(16, 40))
        found = np.zeros((len(prompts), len(options)))
        for rows in batches(prompts, 2):
            found[rows] = scorer([prompts[i] for i in rows], of_base(base))[0]
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
