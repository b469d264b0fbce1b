"""What merges are timed against: the bare linear algebra, KnOTS' procedure, PEFT and mergekit.

torch is imported where it is used, so that a process that times our own cold start has none of it.
"""

import json
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.merge_inputs import Sizes
from langmerge_jax.adapters import Adapter


@jax.jit
def _bare(scaled_b: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The QRs, the SVD and the products that KnOTS needs for one projection, and nothing else.

    Args:
        scaled_b: All B's side by side `[o, n * r]`.
        a: All A's `[n, r, i]`.

    Returns:
        U `[o, k]` and S V `[n, k, i]`.
    """
    q_b, r_b = jnp.linalg.qr(scaled_b)
    q_a, r_a = jnp.linalg.qr(jnp.swapaxes(a, 1, 2))  # [n, i, r], [n, r, r]
    blocks = r_b.reshape(r_b.shape[0], *a.shape[:2])  # [p, n, r]
    core = jnp.einsum("pnr,nqr->pnq", blocks, r_a).reshape(r_b.shape[0], -1)
    p, s, vh = jnp.linalg.svd(core, full_matrices=False)
    rows = (s[:, None] * vh).reshape(vh.shape[0], *a.shape[:2])
    return q_b @ p, jnp.einsum("knq,niq->nki", rows, q_a)


def bare_seconds(sizes: Mapping[str, Any], count: int, rank: int) -> float:
    """Seconds of the bare calls for every projection of a model, compiled, float32.

    Projections go one after the other, or two at a time, whichever is faster for one layer.

    Args:
        sizes: Fields of `Sizes`.
        count, rank: Of the adapters.
    """
    rng, arrays = np.random.default_rng(0), {}
    for o, i in set(Sizes(**sizes).linear().values()):
        b = rng.standard_normal((o, count * rank), dtype=np.float32)
        a = rng.standard_normal((count, rank, i), dtype=np.float32)
        arrays[o, i] = jnp.asarray(b), jnp.asarray(a)
        jax.block_until_ready(_bare(*arrays[o, i]))

    def through(shapes: Iterable[tuple[int, int]], width: int) -> float:
        start, under_way = time.perf_counter(), []
        for shape in shapes:
            under_way.append(_bare(*arrays[shape]))
            if len(under_way) == width:
                jax.block_until_ready(under_way.pop(0))
        jax.block_until_ready(under_way)
        return time.perf_counter() - start

    layer = {width: through(Sizes(**sizes).linear().values(), width) for width in (1, 2)}
    return through(Sizes(**sizes).modules().values(), min(layer, key=layer.get))


def knots(
    adapter_factors: Sequence[tuple[np.ndarray, np.ndarray]], densities: Sequence[float]
) -> tuple[dict[float, np.ndarray], dict[float, float]]:
    """TIES-KnOTS as the official code does it; our own transcription.

    `torch.linalg.svd` in float64 of all task vectors side by side, without singular values up to
    1e-5; then in float32 the trim of S V, keeping one entry more than the share and all that tie,
    the sign of the sum, the mean over what agrees, and the way back. The task vectors are float64
    products here and float32 ones there, whose roundings would turn close singular directions.

    Args:
        adapter_factors: (A `[r, i]`, B `[o, r]`) of each adapter.
        densities: The decomposition is made once and its time counts for each.

    Returns:
        The merged delta and the seconds, by density.

    References:
        Stoica et al., KnOTS (arXiv 2410.19735), github.com/gstoica27/KnOTS at baa35e8.
    """
    torch = _torch()
    factors = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in adapter_factors]
    start = time.perf_counter()
    joined = torch.cat([b.double() @ a.double() for a, b in factors], dim=1)
    u, s, vh = torch.linalg.svd(joined, full_matrices=False)
    kept = s > 1e-5
    u, s, vh = u[:, kept].float(), s[kept].float(), vh[kept].float()
    tasks = torch.stack(torch.split(s[:, None] * vh, factors[0][0].shape[1], dim=1))
    decomposed = time.perf_counter() - start
    merged, seconds = {}, {}
    for density in densities:
        start = time.perf_counter()
        flat = tasks.reshape(len(tasks), -1)
        if density < 1:
            dropped = flat.shape[1] - int(density * flat.shape[1])
            threshold = flat.abs().kthvalue(dropped, dim=1, keepdim=True).values
            flat = torch.where(flat.abs() >= threshold, flat, 0)
        sign = torch.sign(flat.sum(dim=0))
        sign[sign == 0] = torch.sign(sign.sum())
        agreeing = torch.where(sign > 0, flat > 0, flat < 0)
        mean = (flat * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)
        merged[density] = (u @ mean.reshape(tasks.shape[1:])).numpy()
        seconds[density] = decomposed + time.perf_counter() - start
    return merged, seconds


class Peft:
    """PEFT on a model of one linear layer, with all cores.

    Args:
        adapters: Of one projection, of one rank and of scale 1.
    """

    def __init__(self, adapters: Mapping[str, Adapter]):
        torch = _torch()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import peft
        found = {name: adapter.modules["proj"] for name, adapter in adapters.items()}
        one = next(iter(found.values()))
        config = peft.LoraConfig(r=one.rank, lora_alpha=one.rank, target_modules=["proj"])
        root = torch.nn.Module()
        root.proj = torch.nn.Linear(one.in_features, one.out_features, bias=False)
        first, *others = found
        self._model = peft.get_peft_model(root, config, adapter_name=first)
        for name in others:
            self._model.add_adapter(name, config)
        self._layer = self._model.base_model.model.proj
        for name, factors in found.items():
            self._layer.lora_A[name].weight.data = torch.from_numpy(factors.a)
            self._layer.lora_B[name].weight.data = torch.from_numpy(factors.b)
        self._names, self._torch, self._utils = list(found), torch, peft.utils.merge_utils

    def add_weighted_adapter(self, kind: str, density: float, **options: Any) -> None:
        """The documented way; `result` has what came out."""
        self._merged = f"merged{len(self._model.peft_config)}"
        with self._torch.no_grad():
            self._model.base_model.add_weighted_adapter(
                self._names,
                [1.0] * len(self._names),
                self._merged,
                combination_type=kind,
                density=density,
                **options,
            )

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """(A, B) of the last `add_weighted_adapter`."""
        layer = self._layer
        return layer.lora_A[self._merged].weight.numpy(), layer.lora_B[self._merged].weight.numpy()

    def on_factors(self, kind: str, density: float) -> tuple[np.ndarray, np.ndarray]:
        """(A, B) by `merge_utils` alone, without the model around it."""
        function, weights = getattr(self._utils, kind), self._torch.ones(len(self._names))
        with self._torch.no_grad():
            sides = [
                [side[name].weight.data for name in self._names]
                for side in (self._layer.lora_A, self._layer.lora_B)
            ]
            return tuple(function(tensors, weights, density).numpy() for tensors in sides)


def best_energy(delta: np.ndarray, rank: int) -> float:
    """The share of the squared norm that the best approximation of a rank keeps: a full SVD."""
    values = _torch().linalg.svdvals(_torch().from_numpy(np.array(delta))).double()
    return float((values[:rank] ** 2).sum() / (values**2).sum())


def mergekit_config(
    path: pathlib.Path, base: pathlib.Path, models: Sequence[pathlib.Path], density: float
) -> pathlib.Path:
    """Writes a config of mergekit's `ties`; YAML reads JSON."""
    parameters = {"weight": 1.0, "density": density}
    config = {
        "merge_method": "ties",
        "base_model": str(base),
        "models": [{"model": str(model), "parameters": parameters} for model in models],
        "dtype": "float32",
    }
    path.write_text(json.dumps(config, indent=2))
    return path


# Its help names --async-write as faster; the rest of its performance options are for a GPU or for
# pickles.
MERGEKIT_OPTIONS = {"plain": [], "async": ["--async-write", f"--write-threads={os.cpu_count()}"]}


def mergekit_command(config: pathlib.Path, output: pathlib.Path, options: str) -> list[str]:
    """The command of mergekit's command line."""
    return [
        *(sys.executable, "-m", "mergekit.scripts.run_yaml", str(config), str(output)),
        *(f"--num-threads={os.cpu_count()}", "--no-copy-tokenizer", "--quiet"),
        *MERGEKIT_OPTIONS[options],
    ]


def mergekit_again(config: str, output: str, options: str) -> float:
    """Seconds of mergekit's second run in one process."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    chosen = MergeOptions(
        num_threads=os.cpu_count(),
        copy_tokenizer=False,
        quiet=True,
        async_write=options == "async",
        write_threads=os.cpu_count() if options == "async" else 1,
    )
    chosen.apply_global_options()
    merge = MergeConfiguration.model_validate(yaml.safe_load(pathlib.Path(config).read_text()))
    for turn in range(2):
        start = time.perf_counter()
        run_merge(merge, f"{output}{turn}", options=chosen)
        seconds = time.perf_counter() - start
    return seconds


def _torch():
    import torch

    torch.set_num_threads(os.cpu_count())
    return torch
