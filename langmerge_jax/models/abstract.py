"""A base model that is known by its config alone, for what only asks for shapes."""

import pathlib

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from langmerge_jax.errors import InputError
from langmerge_jax.models.attention import choose
from langmerge_jax.models.checkpoint import Base, abstract_params
from langmerge_jax.models.config import LlamaConfig, load_config
from langmerge_jax.parallel.mesh import Rules


def read_config(name: str) -> LlamaConfig:
    """Returns a model's config; of the hub nothing but `config.json` is fetched.

    Raises:
      InputError: if it is neither a directory with one nor a reachable hub name.
    """
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        return load_config(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"base model {name!r}: no such directory")
    import huggingface_hub

    try:
        return load_config(
            pathlib.Path(huggingface_hub.hf_hub_download(name, "config.json")).parent
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise InputError(
            f"base model {name!r}: no such directory, and the hub did not give its config.json: "
            f"{str(error).splitlines()[0]}"
        ) from error


def abstract_base(
    name: str, config: LlamaConfig, *, mesh: Mesh, dtype: jnp.dtype, attention: str = "auto"
) -> Base:
    """Returns what `load_base` returns, with shapes in place of weights and without a tokenizer.

    Args:
      name: of the model.
      config: its shape.
      mesh: devices, or those of a topology that are not there.
      dtype: of weights and computation.
      attention: see `models.attention.choose`.
    """

    def place(leaf) -> jax.ShapeDtypeStruct:
        where = Rules().sharding(mesh, leaf.get_metadata()["axes"], leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    leaves = nnx.to_flat_state(abstract_params(config, dtype))
    params = nnx.from_flat_state([(path, leaf.replace(place(leaf))) for path, leaf in leaves])
    chosen = choose(
        attention,
        platform=mesh.devices.flat[0].platform,
        dtype=dtype,
        head_dim=config.head_dim,
        mesh=mesh,
    )
    return Base(name, config, params, None, mesh, dtype, chosen)
