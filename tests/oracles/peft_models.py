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
    model = load(directories, shapes)
    names = sorted(directories)
    with warnings.catch_warnings():
        # PEFT warns that density 1 prunes nothing.
        warnings.filterwarnings("ignore", message="The density")
        model.base_model.add_weighted_adapter(
            names, [weights[name] for name in names], "merged", **options
        )
    return task_vectors(model, "merged")


def ties_by_peft(deltas, weights, density):
    """`peft.utils.merge_utils.ties` on whole task vectors, in float64."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")
        merged = peft.utils.merge_utils.ties(
            [torch.from_numpy(np.array(x, np.float64)) for x in deltas],
            torch.tensor(weights, dtype=torch.float64),
            density,
        )
    return merged.numpy()
