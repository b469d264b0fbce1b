"""PEFT itself, on models of a few linear layers. Importing this skips where it is missing."""

import warnings

import numpy as np
import pytest

REASON = "torch and peft are not installed (extra `dev`)"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason=REASON)
    peft = pytest.importorskip("peft", reason=REASON)


def base_model(shapes):
    """A model with a linear layer `[out, in]` at each path of `shapes`."""
    root = torch.nn.Module()
    for path, (out_features, in_features) in shapes.items():
        *parents, leaf = path.split(".")
        node = root
        for name in parents:
            if not hasattr(node, name):
                node.add_module(name, torch.nn.Module())
            node = getattr(node, name)
        node.add_module(leaf, torch.nn.Linear(in_features, out_features, bias=False))
    return root


def task_vectors(model, name="default"):
    """What PEFT adds to each weight for one adapter, float64."""
    deltas = {}
    for path, layer in model.base_model.model.named_modules():
        if name in getattr(layer, "lora_A", {}):
            a = layer.lora_A[name].weight.detach().double().numpy()
            b = layer.lora_B[name].weight.detach().double().numpy()
            deltas[path] = layer.scaling[name] * b @ a
    return deltas


def load(directories, shapes):
    """A model with the adapters of `directories` (by name) attached by PEFT."""
    (first, directory), *others = directories.items()
    model = peft.PeftModel.from_pretrained(base_model(shapes), directory, adapter_name=first)
    for name, directory in others:
        model.load_adapter(directory, adapter_name=name)
    return model


def train_and_save(directory, shapes, dtype=torch.float32, **config):
    """Saves an adapter of random factors as PEFT does; returns its task vectors."""
    generator = torch.Generator().manual_seed(0)
    model = peft.get_peft_model(base_model(shapes), peft.LoraConfig(**config))
    model = model.to(dtype)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data = values.to(parameter.dtype)
    # Otherwise it saves lm_head's base weight too, as soon as an adapter is on it.
    model.save_pretrained(directory, save_embedding_layers=False)
    return task_vectors(model)


def merged_by_peft(directories, shapes, weights, **options):
    """Task vectors of `add_weighted_adapter` over the adapters of `directories`."""
    return combined(load(directories, shapes), weights, "merged", **options)


def combined(model, weights, title, **options):
    """Task vectors of one more `add_weighted_adapter`, then taken off the model again."""
    names = sorted(weights)
    with warnings.catch_warnings():
        # PEFT warns that density 1 prunes nothing.
        warnings.filterwarnings("ignore", message="The density")
        model.base_model.add_weighted_adapter(
            names, [weights[name] for name in names], title, **options
        )
    deltas = task_vectors(model, title)
    model.delete_adapter(title)
    return deltas


def ties_by_peft(deltas, weights, density, sign="total"):
    """`peft.utils.merge_utils.ties` on whole task vectors, in float64."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")
        merged = peft.utils.merge_utils.ties(
            [torch.from_numpy(np.array(x, np.float64)) for x in deltas],
            torch.tensor(weights, dtype=torch.float64),
            density,
            sign,
        )
    return merged.numpy()


def tiny_model(kind):
    """A transformers model of one layer, the same at each call."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2}
    if kind in ("llama", "tied", "llama classifier"):
        config = transformers.LlamaConfig(
            **sizes,
            **heads,
            num_key_value_heads=1,
            tie_word_embeddings=kind == "tied",
            num_labels=3,
            pad_token_id=0,
        )
        model = transformers.LlamaForSequenceClassification
        return (model if "classifier" in kind else transformers.LlamaForCausalLM)(config)
    if kind == "roberta classifier":
        config = transformers.RobertaConfig(**sizes, **heads, num_labels=3)
        return transformers.RobertaForSequenceClassification(config)
    assert kind == "gpt2"
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def train_tiny(kind, directory, **config):
    """A tiny model with an adapter of random values, which PEFT has saved in its own way."""
    with warnings.catch_warnings():
        # It says that it saves embeddings, that embeddings are tied, and that GPT-2 is transposed.
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny_model(kind), peft.LoraConfig(**config))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or ".lora_" in name:
                parameter.data = torch.randn(parameter.shape) / 4
        model.save_pretrained(directory)
    return model.eval()


def load_tiny(kind, directory):
    """The tiny model with an adapter attached by PEFT, which warns of what it misses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True` and a tied")
        return peft.PeftModel.from_pretrained(tiny_model(kind), directory).eval()


def weight_changes(model, name="default"):
    """What PEFT would add to each stored weight, float64, in the layout of that weight."""
    changes = {}
    for path, layer in model.base_model.model.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.double()
            changes[path] = layer.get_delta_weight(name).detach().numpy()
            layer.float()
    return changes


def saved_modules(model, name="default"):
    """Tensors of the modules that were trained whole, by name."""
    found = {}
    for path, layer in model.base_model.model.named_modules():
        if isinstance(layer, peft.utils.ModulesToSaveWrapper):
            for key, value in layer.modules_to_save[name].state_dict().items():
                found[f"{path}.{key}"] = value.numpy()
    return found


def outputs(model):
    """Logits for one fixed batch."""
    tokens = torch.arange(1, 13).reshape(2, 6)
    with torch.no_grad():
        return model(input_ids=tokens).logits.numpy()


def merged_into_base(model):
    """Tensors of the base with the adapter merged into it by PEFT, which ends the adapter."""
    with warnings.catch_warnings():
        # Of merging into tied weights.
        warnings.simplefilter("ignore")
        return {name: x.numpy() for name, x in model.merge_and_unload().state_dict().items()}
