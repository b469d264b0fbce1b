"""Collects the scores and updates of the demo over several seeds into docs/demo_scores.json.

  .venv-test/bin/python -m docs.from_seeds 0=runs/demo 1=runs/seed1 2=runs/seed2

tests/test_docs.py checks that docs/demo.md quotes them rightly.
"""

import pathlib
import sys
from typing import Any

from langmerge_jax.files import read_json, write_json

ROOT = pathlib.Path(__file__).resolve().parents[1]
UPDATES = ("en", "en-warm", "es")


def _table(rows: list[dict[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """{name: {language: macro F1}}."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["metric"] == "macro_f1":
            found.setdefault(row[key], {})[row["language"]] = round(row["value"], 6)
    return found


def collect(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what docs/demo.md needs of one finished demo."""
    costs = {row["what"]: row for row in read_json(workdir / "costs.json")["rows"]}
    updates = {}
    for name in UPDATES:
        kept = ("variant", "language", "before", "after", "difference", "low", "high")
        rows = read_json(workdir / "updates" / name / "changes.json")["rows"]
        updates[name] = {
            "rows": [{k: _rounded(row[k]) for k in kept} for row in rows],
            **{
                key: _rounded(costs[f"update {name}"][key])
                for key in ("measured_saving", "predicted_saving")
            },
        }
    against = {
        row["variant"]: {key: _rounded(row[key]) for key in ("difference", "low", "high")}
        for row in read_json(workdir / "comparisons.json")
        if row["language"] == "all"
    }
    scores = read_json(workdir / "scores.json") + read_json(workdir / "baselines.json")["scores"]
    return {
        "chosen": read_json(workdir / "tuning.json")["chosen"],
        "variants": _table(scores, "variant"),
        "adapters": _table(read_json(workdir / "matrix.json"), "adapter"),
        "against_combined": against,
        "set_up": {
            key: _rounded(costs["set up"][key])
            for key in ("device_seconds", "combined_device_seconds")
        },
        "updates": updates,
    }


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


if __name__ == "__main__":
    pairs = [argument.split("=", 1) for argument in sys.argv[1:]]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        sys.exit(__doc__)
    seeds = {seed: collect(pathlib.Path(workdir)) for seed, workdir in pairs}
    write_json(
        ROOT / "docs" / "demo_scores.json", {"metric": "macro_f1", "n": 2000, "seeds": seeds}
    )
