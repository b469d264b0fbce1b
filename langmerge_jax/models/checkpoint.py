"""Base models on disk: Hugging Face directories in and out."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from jax.sharding import Mesh

from langmerge_jax.errors import InputError
from langmerge_jax.models.config import LlamaConfig, load_config
from langmerge_jax.models.llama import Llama
from langmerge_jax.parallel.mesh import Rules

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model ready for use.

    Attributes:
      name: what the user called it (a directory or a hub name); adapters record it.
      config: its shape.
      params: NNX state of the bare `Llama`, laid out over `mesh`.
      tokenizer: a transformers tokenizer.
      mesh: the devices.
      dtype: of weights and computation.
    """

    name: str
    config: LlamaConfig
    params: nnx.State
    tokenizer: object
    mesh: Mesh
    dtype: jnp.dtype


def hf_name(path: tuple[str, ...], layer: int | None = None) -> str:
    """Returns the Hugging Face tensor name of an NNX path, such as ('layers', …, 'kernel')."""
    if path[0] == "layers":
        body = [name for name in path[1:] if name != "kernel"]
        stem = ".".join(["model", "layers", str(layer), *body])
    else:
        stem = ".".join(path if path[0] == "lm_head" else ("model", *path))
    return stem if stem.endswith(".weight") else stem + ".weight"


def abstract_params(config: LlamaConfig, dtype: jnp.dtype) -> nnx.State:
    """Returns the bare model's state with shapes in place of arrays."""
    model = nnx.eval_shape(lambda: Llama(config, dtype=dtype, rngs=nnx.Rngs(params=0)))
    return nnx.state(model)


def resolve(name: str) -> pathlib.Path:
    """Returns the local directory of a base model, fetching it from the hub if it is no path.

    Raises:
      InputError: if it is neither a directory nor a reachable hub name.
    """
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"base model {name!r}: no such directory")
    import huggingface_hub

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]
            )
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"base model {name!r}: no such directory, and the hub did not give it: {reason}"
        ) from error


def load_tokenizer(directory: pathlib.Path):
    """Loads the tokenizer beside a model.

    Raises:
      InputError: if there is none.
    """
    # transformers takes seconds to import; `--help` and bad flags must not wait for it.
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{directory}: no tokenizer could be loaded ({reason})") from error


def load_base(
    name: str, *, mesh: Mesh, rules: Rules | None = None, dtype: jnp.dtype = jnp.float32
) -> Base:
    """Loads a Llama with its tokenizer, each array into its sharding.

    Args:
      name: directory in Hugging Face layout, or hub name.
      mesh, rules: where the weights go.
      dtype: they are converted to.

    Raises:
      InputError: for a missing or truncated file, and for tensors that are missing or of another
        shape than `config.json` says.
    """
    directory = resolve(name)
    config = load_config(directory)
    rules = rules or Rules()
    with Tensors(directory) as tensors:

        def fill(path, variable):
            read = _reader(tensors, path, variable.shape, config)
            sharding = rules.sharding(mesh, variable.get_metadata()["axes"], variable.shape)
            return variable.replace(jax.device_put(read().astype(dtype), sharding))

        params = nnx.from_flat_state(
            [(p, fill(p, v)) for p, v in nnx.to_flat_state(abstract_params(config, dtype))]
        )
    return Base(name, config, params, load_tokenizer(directory), mesh, dtype)


def _reader(tensors: "Tensors", path, shape, config: LlamaConfig) -> Callable[[], np.ndarray]:
    if path[0] != "layers":
        return lambda: tensors.get(hf_name(path), shape)
    names = [hf_name(path, layer) for layer in range(config.num_hidden_layers)]
    if path[-1] != "kernel":
        return lambda: np.stack([tensors.get(name, shape[1:]) for name in names])
    # Hugging Face stores [out, in].
    return lambda: np.stack([tensors.get(name, shape[:0:-1]).T for name in names])


class Tensors:
    """The tensors of a Hugging Face directory, single file or sharded with an index."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        index = directory / "model.safetensors.index.json"
        single = directory / "model.safetensors"
        if index.is_file():
            try:
                self._files = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{index}: not a safetensors index ({error!r})") from error
        elif single.is_file():
            self._files = None
        else:
            raise InputError(
                f"{directory}: a base without weights; it has neither model.safetensors nor "
                "model.safetensors.index.json"
            )
        self._single = single
        self._open: dict[pathlib.Path, safetensors.safe_open] = {}

    def __enter__(self) -> "Tensors":
        return self

    def __exit__(self, *exception):
        self._open.clear()

    def _handle(self, name: str):
        if self._files is not None and name not in self._files:
            raise InputError(f"{self.directory}: the index names no tensor {name!r}")
        path = self._single if self._files is None else self.directory / self._files[name]
        if path not in self._open:
            try:
                self._open[path] = safetensors.safe_open(path, framework="numpy")
            except (OSError, safetensors.SafetensorError) as error:
                raise InputError(
                    f"{path}: cannot be read, perhaps truncated; fetch it again ({error})"
                ) from error
        return self._open[path]

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reads one tensor and checks its shape."""
        handle = self._handle(name)
        if name not in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
            raise InputError(f"{self.directory}: tensor {name!r} is missing")
        value = handle.get_tensor(name)
        if value.shape != tuple(shape):
            raise InputError(
                f"{self.directory}: {name} has shape {list(value.shape)}, "
                f"config.json asks for {list(shape)}"
            )
        return value


def to_hf(params: nnx.State) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (Hugging Face name, array) of every weight of a bare model's state."""
    for path, variable in nnx.to_flat_state(params):
        value = np.asarray(variable[...])
        if path[0] != "layers":
            yield hf_name(path), value
            continue
        for layer, piece in enumerate(value):
            transposed = piece.T if path[-1] == "kernel" else piece
            yield hf_name(path, layer), np.ascontiguousarray(transposed)


def save_base(directory: pathlib.Path, params: nnx.State, config: LlamaConfig, tokenizer) -> None:
    """Writes a model as an ordinary Hugging Face directory, in one file.

    Args:
      directory: made if missing.
      params: state of the bare `Llama`.
      tokenizer: a transformers tokenizer, saved beside.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(directory)
    tensors = dict(to_hf(params))
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    fields = config.to_hf() | {
        "dtype": str(next(iter(tensors.values())).dtype),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
