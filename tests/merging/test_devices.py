"""A merge on eight devices is that on one."""

import json
import os
import subprocess
import sys

import pytest

# Five modules of one signature and eleven of another, so that batches are cut short; whole numbers
# make entries of equal size, of which a trim over all modules keeps the first.
PROGRAM = """
import json
import jax
import numpy as np
from langmerge_jax.adapters import Adapter, Factors
from langmerge_jax.merging import merge

def adapters(entries, ranks=(3, 3, 3)):
    rng = np.random.default_rng(0)
    shapes = {f"layers.{j}.q": (24, 20) for j in range(11)}
    shapes |= {f"layers.{j}.k": (8, 20) for j in range(5)}
    return {
        name: Adapter(
            {
                path: Factors(
                    entries(rng, (rank, i)).astype(np.float32),
                    entries(rng, (o, rank)).astype(np.float32),
                    0.5,
                )
                for path, (o, i) in shapes.items()
            }
        )
        for name, rank in zip(("de", "en", "ja"), ranks)
    }

normal = lambda rng, shape: rng.normal(size=shape)
whole = lambda rng, shape: rng.integers(-2, 3, size=shape)

def arrays(merged):
    if isinstance(merged, Adapter):
        return {p: (f.a, f.b) for p, f in merged.modules.items()}
    return {p: (delta,) for p, delta in merged.items()}

found = {"devices": len(jax.devices())}
for recipe, entries, names in CASES:
    inputs = {name: adapters(globals()[entries])[name] for name in names}
    weights = {name: 1.0 + len(name) * j for j, name in enumerate(names)}
    one, other = (
        arrays(merge(inputs, recipe, weights=weights, seed=3, devices=jax.devices()[:count]))
        for count in (1, 8)
    )
    report = {"masks": True, "error": 0.0}
    assert other.keys() == one.keys()
    for path in one:
        for x, y in zip(one[path], other[path]):
            report["masks"] &= bool(np.array_equal(x != 0, y != 0))
            error = float(np.abs(x - y).max() / np.abs(x).max())
            report["error"] = max(report["error"], error)
    found[recipe + " " + entries] = report
print(json.dumps(found))
"""

# The recipe, the entries of the factors, the adapters. Where a recipe is of one adapter, the zeros
# of its result are the mask that was drawn.
CASES = [
    ("dare_linear@0.4", "normal", ["en"]),
    ("della_linear@0.4", "normal", ["en"]),
    ("knots:dare:sum@0.4", "normal", ["en"]),
    ("dare_ties@0.4", "normal", ["de", "en", "ja"]),
    ("dare_ties_knots@0.4", "normal", ["de", "en", "ja"]),
    ("ties@0.5", "normal", ["de", "en", "ja"]),
    ("ties_knots@0.5", "normal", ["de", "en", "ja"]),
    ("ties@0.3,scope=global", "whole", ["de", "en", "ja"]),
    ("ties/official@0.3", "whole", ["de", "en", "ja"]),
]


@pytest.fixture(scope="module")
def found():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("CASES", repr(CASES))],
        env=os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["devices"] == 8
    return report


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case[:2]))
def test_one_device_and_eight_draw_one_mask_and_merge_alike(found, case):
    """In batches of one module and of eight, the last of which is not full."""
    report = found[" ".join(case[:2])]
    assert report["masks"]
    assert report["error"] == 0
