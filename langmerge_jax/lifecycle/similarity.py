"""How alike the adapters of a run are: what merging them can keep, and where they disagree."""

import logging
import re
from typing import Any

import numpy as np

from langmerge_jax.files import read_json, write_json
from langmerge_jax.lifecycle.merging import there, trained
from langmerge_jax.lifecycle.run import Run
from langmerge_jax.lifecycle.stages import digest, identity
from langmerge_jax.merging.similarity import cosines, sign_conflict
from langmerge_jax.progress import track

logger = logging.getLogger(__name__)


def compare_adapters(run: Run) -> dict[str, Any]:
    """Writes `similarity.json`.

    Returns:
      {languages; cosines: [language, language] between the deltas of two adapters, None for one
      that changes nothing; sign_conflicts: {layer: share of the deltas against the elected sign}}.
    """
    path = run.home / "similarity.json"
    inputs = digest({x: identity(there(run, x)) for x in run.languages})
    if path.exists() and (found := read_json(path))["inputs"] == inputs:
        return found
    adapters = {x: trained(run, x) for x in run.languages}
    by_layer: dict[str, list[float]] = {}
    modules = list(next(iter(adapters.values())).modules)
    for module in track(modules, "compare adapters", len(modules), "module"):
        share = sign_conflict([adapter.modules[module] for adapter in adapters.values()])
        layer = re.search(r"\.(\d+)\.", module)
        by_layer.setdefault(layer[1] if layer else module, []).append(share)
    movable = "{workdir}" in run.config.base
    table = cosines(adapters, allow_base_mismatch=movable)
    found = {
        "inputs": inputs,
        "languages": list(adapters),
        "cosines": [[float(x) if np.isfinite(x) else None for x in row] for row in table],
        "sign_conflicts": {layer: float(np.mean(shares)) for layer, shares in by_layer.items()},
    }
    write_json(path, found)
    return found
