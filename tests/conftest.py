"""What every test may use: the place of real data, and tiny Llamas on disk."""

import atexit
import importlib.metadata
import os
import pathlib
import tempfile

# Before jax is imported: the tests are for the CPU, whatever the machine has.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Where the TPU's compiler is installed, processes are not to look for a TPU, nor for each other.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
# Tests, and the doors they run as processes, compile many of the same programs: each once a
# session, or with a cache of one's own only when it is new.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="compiled-")
    atexit.register(_cache.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
# Programs here run for milliseconds and take seconds to compile: not for speed, then.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Unknown to jaxlib 0.11; until then it takes a third of the time.
if importlib.metadata.version("jaxlib") < "0.11":
    _flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{_flags} --xla_cpu_use_fusion_emitters=false".strip()
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Of the doors that tests start.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(pathlib.Path(__file__).with_name("startup")), os.environ.get("PYTHONPATH")])
)

import numpy as np
import pytest

from langmerge_jax.models.config import LlamaConfig
from tests.doors import door

REALDATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "realdata"


@pytest.fixture(scope="session")
def realdata() -> pathlib.Path:
    """The folder of real rows and weights beside the repository."""
    if not REALDATA.is_dir():
        pytest.skip(f"real data is not at {REALDATA}")
    return REALDATA


@pytest.fixture(scope="session")
def tokenizer():
    """A small byte-level tokenizer with a chat template."""
    from langmerge_jax.demo.base import train_tokenizer

    texts = ["The screen is good.", "Der Akku ist schlecht.", "画面はとても良いです。"] * 20
    return train_tokenizer([*texts, "positive neutral negative"], vocab_size=320)


@pytest.fixture(scope="session")
def tiny_config(tokenizer) -> LlamaConfig:
    """A Llama with grouped-query attention, small enough for any test."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_scaling=None,
        tie_word_embeddings=True,
        max_position_embeddings=256,
    )


@pytest.fixture(scope="session")
def make_base(tmp_path_factory, tokenizer):
    """Writes a random Llama of a given config as a new Hugging Face directory."""
    import jax
    from flax import nnx

    from langmerge_jax.models.checkpoint import save_base
    from langmerge_jax.models.llama import Llama

    def make(config: LlamaConfig, name: str = "base", tokenizer=tokenizer) -> pathlib.Path:
        params = nnx.state(Llama(config, rngs=nnx.Rngs(params=0)))
        # Ten times the usual deviation: near-zero logits would hide errors.
        params = jax.tree.map(lambda x: x * 10 if np.std(x) > 0 else x, params)
        directory = tmp_path_factory.mktemp("bases") / name
        save_base(directory, params, config, tokenizer)
        return directory

    return make


@pytest.fixture
def random_adapter():
    """Makes an adapter with random factors for every linear of a Llama config."""
    from langmerge_jax.adapters import Adapter, Factors

    def make(config: LlamaConfig, seed: int, rank: int = 4, scale: float = 2.0) -> Adapter:
        rng = np.random.default_rng(seed)
        modules = {}
        for layer in range(config.num_hidden_layers):
            for name, (i, o) in config.projections().items():
                block = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
                modules[f"model.layers.{layer}.{block}.{name}"] = Factors(
                    rng.normal(size=(rank, i)).astype(np.float32) / np.sqrt(i),
                    rng.normal(size=(o, rank)).astype(np.float32) / np.sqrt(rank),
                    scale,
                )
        return Adapter(modules, task_type="CAUSAL_LM")

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The workdir of a finished tiny experiment, to be read only, and what the door printed."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    result = door("experiment", workdir)
    assert result.returncode == 0, result.stderr
    return workdir, result
