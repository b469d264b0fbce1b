"""Adapters between their stored form and the stacked form the model computes with."""

import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from langmerge_jax.adapters import Adapter, Factors
from langmerge_jax.errors import InputError
from langmerge_jax.models.attention import Attention
from langmerge_jax.models.config import LlamaConfig
from langmerge_jax.models.llama import Llama
from langmerge_jax.models.lora import LoraParam, LoraSpec

# Layer, block and projection of a module path.
MODULE = re.compile(r"model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)")


def _module(path: tuple, layer: int) -> str:
    return f"model.layers.{layer}.{path[1]}.{path[2]}"


def spec_of(adapters: Sequence[Adapter]) -> LoraSpec:
    """Returns the smallest LoraSpec that holds these adapters side by side."""
    factors = [(name, f) for a in adapters for name, f in a.modules.items()]
    return LoraSpec(
        n=len(adapters),
        rank=max(f.a.shape[0] for _, f in factors),
        targets=tuple(sorted({name.rpartition(".")[2] for name, _ in factors})),
    )


def split_lora(
    config: LlamaConfig,
    spec: LoraSpec | None,
    dtype: jnp.dtype,
    *,
    remat: str = "none",
    attention: Attention = Attention(),  # noqa: B008 (frozen)
):
    """Returns (graph, abstract LoRA state) of a Llama that holds adapters of this shape."""

    def make() -> Llama:
        rngs = nnx.Rngs(params=0)
        return Llama(config, spec, dtype=dtype, remat=remat, attention=attention, rngs=rngs)

    model = nnx.eval_shape(make)
    graph, lora, _ = nnx.split(model, LoraParam, ...)
    return graph, lora


def stack(
    adapters: Mapping[str, Adapter],
    config: LlamaConfig,
    spec: LoraSpec,
    dtype: jnp.dtype,
    *,
    scaled: bool = True,
) -> nnx.State:
    """Stacks adapters for `Llama`, padding lower ranks and missing modules with zeros.

    The scale of each module is multiplied into B, so that adapters whose modules differ in scale
    can share a program; the model is to be given scales of 1. With `scaled=False` B stays as it
    is, and the model is to be given the scale of the adapters.

    Returns:
      LoRA state with leaves [l, n, ...].

    Raises:
      InputError: if an adapter has a module that the model has not, or of another shape, or fully
        trained tensors.
    """
    shapes = config.projections()
    for name, adapter in adapters.items():
        if adapter.heads:
            raise InputError(
                f"adapter {name!r}: {next(iter(adapter.heads))} was trained in full, which the "
                "model here cannot take beside its base; fold the adapter into a model instead"
            )
        for module, factors in adapter.modules.items():
            match = MODULE.fullmatch(module)
            found = match and int(match[1]) < config.num_hidden_layers and match[3] in shapes
            if not found:
                raise InputError(f"adapter {name!r}: the base model has no module {module}")
            shape = (factors.a.shape[1], factors.b.shape[0])
            if shape != shapes[match[3]]:
                raise InputError(
                    f"adapter {name!r}: {module} is {shape[0]} -> {shape[1]}, in the base model "
                    f"{shapes[match[3]][0]} -> {shapes[match[3]][1]}; it was made for another base"
                )

    def fill(path, variable):
        value = np.zeros(variable.shape, np.float32)
        for n, adapter in enumerate(adapters.values()):
            for layer in range(config.num_hidden_layers):
                factors = adapter.modules.get(_module(path, layer))
                if factors is None:
                    continue
                rank = factors.a.shape[0]
                if path[-1] == "lora_a":
                    value[layer, n, :, :rank] = factors.a.T
                else:
                    scale = factors.scale if scaled else 1.0
                    value[layer, n, :rank] = scale * factors.b.T.astype(np.float32)
        return variable.replace(jnp.asarray(value))

    _, abstract = split_lora(config, spec, dtype)
    return nnx.from_flat_state([(p, fill(p, v)) for p, v in nnx.to_flat_state(abstract)])


def unstack(
    lora: nnx.State, *, names: Sequence[str], scale: float, base: str
) -> dict[str, Adapter]:
    """Takes a LoRA state with leaves [l, n, ...] apart into one Adapter a name.

    Args:
      names: of the n adapters, in order.
      scale: alpha / rank of all of them.
      base: name of the base model they belong to.
    """
    leaves = {path: np.asarray(value[...]) for path, value in nnx.to_flat_state(lora)}
    adapters = {}
    for n, name in enumerate(names):
        modules = {}
        for path, a in leaves.items():
            if path[-1] != "lora_a":
                continue
            b = leaves[(*path[:-1], "lora_b")]
            for layer in range(len(a)):
                modules[_module(path, layer)] = Factors(
                    np.ascontiguousarray(a[layer, n].T), np.ascontiguousarray(b[layer, n].T), scale
                )
        adapters[name] = Adapter(modules, base=base, task_type="CAUSAL_LM")
    return adapters


def swap_leading(lora: nnx.State) -> nnx.State:
    """Turns leaves [n, l, ...], as training has them, into the model's [l, n, ...], and back."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), lora)


def init_lora(config: LlamaConfig, spec: LoraSpec, seeds: Sequence[int]) -> nnx.State:
    """Draws fresh adapters as PEFT does: A uniform in +-1/sqrt(in), B zero.

    Args:
      seeds: one for each of the n adapters, so that an adapter starts the same whichever others
        are trained beside it.

    Returns:
      LoRA state with leaves [n, l, ...], the form the training step takes, as NumPy arrays.
    """
    _, abstract = split_lora(config, spec, jnp.float32)

    def draw(i, path, variable):
        layers, n, *shape = variable.shape
        value = np.zeros((n, layers, *shape), np.float32)
        if path[-1] == "lora_a":
            bound = np.float32(shape[0] ** -0.5)
            for one, seed in zip(value, seeds, strict=True):
                np.random.default_rng([seed, i]).random(out=one, dtype=np.float32)
            value = bound * (2 * value - 1)
        return value.astype(variable.dtype)

    return nnx.from_flat_state(
        [
            (path, variable.replace(draw(i, path, variable)))
            for i, (path, variable) in enumerate(nnx.to_flat_state(abstract))
        ]
    )
