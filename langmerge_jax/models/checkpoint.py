"""Base models on disk: Hugging Face directories in and out."""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from langmerge_jax.adapters.adapter import FLOAT_DTYPES
from langmerge_jax.errors import InputError
from langmerge_jax.files import read_json, write_json
from langmerge_jax.models.attention import Attention, choose
from langmerge_jax.models.config import LlamaConfig, load_config
from langmerge_jax.models.llama import Llama
from langmerge_jax.parallel.mesh import Rules
from langmerge_jax.tensorfiles import (
    INDEX,
    WHOLE,
    TensorWriter,
    map_tensors,
    room_for,
    weight_files,
)

# (path of a leaf, layer or None) -> name of a tensor.
NameOf = Callable[[tuple[str, ...], int | None], str]


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
      attention: how it is computed.
    """

    name: str
    config: LlamaConfig
    params: nnx.State
    tokenizer: object
    mesh: Mesh
    dtype: jnp.dtype
    attention: Attention


def hf_name(path: tuple[str, ...], layer: int | None = None) -> str:
    """Returns the Hugging Face tensor name of an NNX path, such as ('layers', …, 'kernel')."""
    if path[0] == "layers":
        body = [name for name in path[1:] if name != "kernel"]
        stem = ".".join(["model", "layers", str(layer), *body])
    else:
        stem = ".".join(path if path[0] == "lm_head" else ("model", *path))
    return stem if stem.endswith((".weight", ".bias")) else stem + ".weight"


def abstract_params(config: LlamaConfig, dtype: jnp.dtype) -> nnx.State:
    """Returns the bare model's state with shapes in place of arrays."""
    model = nnx.eval_shape(lambda: Llama(config, dtype=dtype, rngs=nnx.Rngs(params=0)))
    return nnx.state(model)


def hf_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all tensors by their Hugging Face names."""
    return shapes_of(abstract_params(config, jnp.float32), hf_name)


def shapes_of(state: nnx.State, name_of: NameOf) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that fill a state, by name.

    Args:
      state: what lies under `layers` is stacked over them, and a `kernel` there is [l, in, out].
      name_of: the name of a tensor, from the path of its leaf and, if it is stacked, its layer.
    """
    shapes = {}
    for path, leaf in nnx.to_flat_state(state):
        if path[0] != "layers":
            shapes[name_of(path, None)] = leaf.shape
            continue
        # Hugging Face stores [out, in].
        shape = leaf.shape[:0:-1] if path[-1] == "kernel" else leaf.shape[1:]
        for layer in range(leaf.shape[0]):
            shapes[name_of(path, layer)] = shape
    return shapes


def resolve(name: str, kind: str = "base model") -> pathlib.Path:
    """Returns the local directory of a model, fetching it from the hub if it is no path.

    Args:
      name: of a directory or on the hub.
      kind: of model, for error messages.

    Raises:
      InputError: if it is neither a directory nor a reachable hub name.
    """
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{kind} {name!r}: no such directory")
    import huggingface_hub

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name,
                allow_patterns=[
                    *("*.json", "*.safetensors", "*.model", "*.jinja"),
                    # Tokenizers of older encoders.
                    *("vocab.txt", "merges.txt"),
                ],
            )
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{kind} {name!r}: no such directory, and the hub did not give it: {reason}"
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


def stop_tokens(base: Base) -> list[int]:
    """Returns the tokens that end an answer: those of generation_config.json and the tokenizer's.

    An instruction-tuned Llama has several.
    """
    path = resolve(base.name) / "generation_config.json"
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    named = found if isinstance(found, list) else [found]
    return sorted({x for x in (*named, base.tokenizer.eos_token_id) if x is not None})


def load_base(
    name: str,
    *,
    mesh: Mesh,
    rules: Rules | None = None,
    dtype: jnp.dtype = jnp.float32,
    attention: str = "auto",
) -> Base:
    """Loads a model with its tokenizer, each array straight into its sharding.

    Files are mapped: a process reads the bytes that its devices hold, and beside the arrays there
    is never more in memory than one tensor of the files.

    Args:
      name: directory in Hugging Face layout, or hub name.
      mesh, rules: where the weights go.
      dtype: they are converted to.
      attention: see `models.attention.choose`.

    Raises:
      InputError: for a missing or truncated file, and for tensors that are missing, left over or
        of another shape than `config.json` says.
    """
    directory = resolve(name)
    config = load_config(directory)
    tensors = Tensors(directory)
    shapes = hf_shapes(config)
    tensors.check(shapes)
    tensors.refuse_others(shapes, tied=config.tie_word_embeddings)
    params = read_params(
        tensors, abstract_params(config, dtype), hf_name, mesh=mesh, rules=rules or Rules()
    )
    chosen = choose(
        attention,
        platform=mesh.devices.flat[0].platform,
        dtype=dtype,
        head_dim=config.head_dim,
        mesh=mesh,
    )
    return Base(name, config, params, load_tokenizer(directory), mesh, dtype, chosen)


def read_params(
    tensors: "Tensors", state: nnx.State, name_of: NameOf, *, mesh: Mesh, rules: Rules
) -> nnx.State:
    """Reads tensors straight to where a state has them.

    Args:
      tensors: of the shapes that `shapes_of` gives.
      state: with shapes in place of arrays, see `shapes_of`.
      name_of: likewise.
      mesh, rules: where the arrays go.

    Returns:
      The state with arrays, of its own dtypes.
    """
    place = functools.partial(_place, tensors, name_of=name_of, mesh=mesh, rules=rules)
    leaves = nnx.to_flat_state(state)
    return nnx.from_flat_state([(path, leaf.replace(place(path, leaf))) for path, leaf in leaves])


def _place(
    tensors: "Tensors", path, leaf, *, name_of: NameOf, mesh: Mesh, rules: Rules
) -> jax.Array:
    """One leaf of the state, read and laid out."""
    axes, shape, dtype = leaf.get_metadata()["axes"], leaf.shape, leaf.dtype
    sharding = rules.sharding(mesh, axes, shape)
    if path[0] != "layers":
        whole = _read(tensors[name_of(path, None)], sharding)
        return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)(whole)
    transposed = path[-1] == "kernel"
    # A tensor lies on the devices as its place in the stack does.
    spec = tuple(sharding.spec)[:0:-1] if transposed else tuple(sharding.spec)[1:]
    of_one = NamedSharding(mesh, PartitionSpec(*spec))
    stack = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()
    # Apart from the writing into the stack: fused with it, a CPU takes seven times as long.
    turn = jax.jit(
        lambda x: (x.T if transposed else x)[None].astype(dtype),
        out_shardings=NamedSharding(mesh, PartitionSpec(None, *tuple(sharding.spec)[1:])),
    )
    put = jax.jit(
        lambda stack, layer, x: jax.lax.dynamic_update_slice_in_dim(stack, x, layer, axis=0),
        donate_argnums=0,
        out_shardings=sharding,
    )
    for layer in range(shape[0]):
        one = turn(_read(tensors[name_of(path, layer)], of_one))
        # Waiting keeps the tensors that are on their way at one.
        stack = put(stack, layer, one).block_until_ready()
    return stack


def _read(tensor: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(tensor.shape, sharding, tensor.__getitem__)


class Tensors(dict):
    """The mapped tensors of a Hugging Face directory, by name.

    Args:
      directory: of the files.
      rename: gives the name under which a tensor is asked for, from that in the file.
    """

    def __init__(self, directory: pathlib.Path, rename: Callable[[str], str] = lambda name: name):
        super().__init__()
        self._directory = directory
        for path in weight_files(directory):
            self |= {rename(name): tensor for name, tensor in map_tensors(path)[0].items()}

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuses what lacks a tensor that `config.json` asks for, or has it in another shape."""
        if missing := sorted(shapes.keys() - self.keys()):
            raise InputError(f"{self._directory}: {_some('tensor', missing)} missing")
        for name, shape in shapes.items():
            if self[name].shape != tuple(shape):
                raise InputError(
                    f"{self._directory}: {name} has shape {list(self[name].shape)}, "
                    f"config.json asks for {list(shape)}"
                )
            if self[name].dtype not in FLOAT_DTYPES:
                raise InputError(
                    f"{self._directory}: {name} is quantised ({self[name].dtype}); take the model "
                    "it was made from"
                )

    def refuse_others(self, known: Collection[str], *, tied: bool) -> None:
        """Refuses tensors that the model does not have: it would be another one."""
        # Buffers of older transformers; and a tied head may be stored as well.
        extra = sorted(
            name
            for name in self.keys() - set(known)
            if not name.endswith("rotary_emb.inv_freq") and not (tied and name == "lm_head.weight")
        )
        if extra:
            raise InputError(
                f"{self._directory}: {_some('tensor', extra)} not part of the model that "
                "config.json describes"
            )


def _some(kind: str, names: Sequence[str]) -> str:
    """`tensor 'a' is` or `tensors 'a', 'b' and 7 more are`."""
    shown = ", ".join(map(repr, names[:3]))
    if len(names) == 1:
        return f"{kind} {shown} is"
    return f"{kind}s {shown}{f' and {len(names) - 3} more' * (len(names) > 3)} are"


def to_hf(params: nnx.State) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (Hugging Face name, array) of every weight of a bare model's state."""
    for path, leaf in nnx.to_flat_state(params):
        if path[0] != "layers":
            yield hf_name(path), np.asarray(leaf[...])
            continue
        for layer in range(leaf.shape[0]):
            piece = np.asarray(leaf[...][layer])
            yield hf_name(path, layer), piece.T if path[-1] == "kernel" else piece


def save_base(
    directory: pathlib.Path,
    params: nnx.State,
    config: LlamaConfig,
    tokenizer,
    *,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a model as an ordinary Hugging Face directory: weights, configs and tokenizer.

    Beside the arrays there is never more in memory than one tensor.

    Args:
      directory: made if missing.
      params: state of the bare `Llama`.
      tokenizer: a transformers tokenizer, saved beside.
      shard_bytes: what a file of weights holds at most, unless one tensor alone is larger. More
        than one file come with an index.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(directory)
    leaves = nnx.to_flat_state(params)
    dtype = leaves[0][1].dtype
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in hf_shapes(config).items()}
    files = _files(sizes, shard_bytes)
    tensors = to_hf(params)
    for file, names in files.items():
        with TensorWriter(
            directory / file, header_room=room_for(names), metadata={"format": "pt"}
        ) as writer:
            for name, tensor in itertools.islice(tensors, len(names)):
                writer.add(name, tensor)
    if len(files) > 1:
        weight_map = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(directory / INDEX, index)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    write_json(directory / "config.json", config.to_hf() | {"dtype": str(dtype)} | ids)
    write_json(directory / "generation_config.json", ids)


def _files(sizes: Mapping[str, int], most: int) -> dict[str, list[str]]:
    """Names by file, in order, as transformers names the files."""
    shards, room = [[]], most
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        return {WHOLE: shards[0]}
    count = len(shards)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": x for i, x in enumerate(shards, 1)}
