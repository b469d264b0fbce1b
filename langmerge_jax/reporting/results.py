"""What the workdir of a run holds for its report."""

import math
import pathlib
from collections.abc import Iterator
from typing import Any

from langmerge_jax.errors import InputError
from langmerge_jax.evaluation.metrics import LOWER_IS_BETTER
from langmerge_jax.files import read_json, read_jsonl
from langmerge_jax.merging.recipe import parse


class Results:
    """What a workdir holds.

    Attributes:
      home: the workdir.
      config: its config.
      languages: that were trained.
      metric: the one that decides.
      chosen: the variant that stands for merging: the tuned one, else the one that updates merge
        by, else the best of the table.
      recipe: its recipe.
      by_choice: how it was chosen, in words.
      costs: of `costs.json`, or None.
      updates: {name of an update: its `changes.json`}.
    """

    def __init__(self, home: pathlib.Path):
        self.home = home
        self.config = read_json(home / "config.json")
        self.languages: list[str] = self.config["languages"]
        rows = read_json(home / "scores.json")
        self.metric: str = rows[0]["metric"]
        self._scores = {(r["variant"], r["language"], r["metric"]): r for r in rows}
        self.chosen, self.recipe, self.by_choice = self._choose()
        path = home / "costs.json"
        self.costs = read_json(path) if path.exists() else None
        changes = sorted(home.glob("updates/*/changes.json"))
        self.updates = {path.parent.name: read_json(path) for path in changes}

    def _choose(self) -> tuple[str, str, str]:
        path = self.home / "tuning.json"
        if path.exists():
            return "tuned", read_json(path)["chosen"], "chosen on validation rows"
        named = (parse(name).name for name in self.config["merge"]["recipes"])
        merges = [name for name in named if self.score(name)]
        if not (merges and self.score("base")):
            raise InputError(
                f"{self.home}: the report needs scores of the base and of a merge; run the "
                "evaluate door without --variants"
            )
        wanted = self.config["updates"]["recipe"]
        if wanted and parse(wanted).name in merges:
            return parse(wanted).name, parse(wanted).name, "named in the config"
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        values = {name: self.score(name)["value"] for name in merges}
        best = max(merges, key=lambda x: -math.inf if values[x] is None else sign * values[x])
        return best, best, f"the best of {len(merges)} on these test rows"

    def score(self, variant: str, language: str = "all") -> dict[str, Any] | None:
        """Returns a variant's row of the metric that decides."""
        return self._scores.get((variant, language, self.metric))

    def has(self, start: str) -> bool:
        """Returns whether the name of a variant begins so."""
        return any(variant.startswith(start) for variant, *_ in self._scores)

    def unbeaten(self, language: str = "all") -> dict[str, float]:
        """Returns {baseline: its score} of those that `combined` does not score above."""
        path, combined = self.home / "baselines.json", self.score("combined", language)
        if combined is None or not path.exists():
            return {}
        found = {
            row["variant"]: row["value"]
            for row in read_json(path)["scores"]
            if (row["language"], row["metric"]) == (language, self.metric)
        }
        value = -math.inf if combined["value"] is None else combined["value"]
        return {name: x for name, x in found.items() if x is not None and value <= x}

    def comparison(self, variant: str, language: str = "all") -> dict[str, Any] | None:
        """Returns how a variant compares with `combined`."""
        path = self.home / "comparisons.json"
        for row in read_json(path) if path.exists() else []:
            if (row["variant"], row["language"]) == (variant, language):
                return row
        return None

    def ledgers(
        self, *, everywhere: bool = False
    ) -> Iterator[tuple[str, pathlib.Path, dict[str, Any]]]:
        """Yields (adapter, folder of its training, ledger) of the adapters trained here.

        Args:
          everywhere: also of those of updates.
        """
        paths = sorted(self.home.glob("adapters/*/training.json"))
        paths += sorted(self.home.glob("updates/*/adapters/*/training.json")) if everywhere else []
        for path in paths:
            folder = self.home / "training" / read_json(path)["folder"]
            yield path.parent.name, folder, read_json(folder / "ledger.json")

    def merged(self) -> pathlib.Path | None:
        """Returns where the adapter of the chosen recipe lies; None if it is full rank."""
        path = self.home / "merged" / self.recipe.replace("/", "-")
        return path if (path / "adapter_config.json").exists() else None

    def predictions(self, variant: str, language: str) -> list[dict[str, Any]]:
        """Returns a variant's predictions."""
        folder = self.home / "predictions" / variant.replace("/", "-")
        return read_jsonl(folder / f"{language}.jsonl")
