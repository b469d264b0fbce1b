"""Theme extraction: comments in, JSON out that quotes them word for word."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

from langmerge_jax.data.examples import Example
from langmerge_jax.data.fields import Row
from langmerge_jax.errors import InputError
from langmerge_jax.evaluation import themes
from langmerge_jax.evaluation.metrics import Metrics, RowMetrics
from langmerge_jax.tasks.task import Judged, Task


@dataclasses.dataclass(frozen=True)
class Themes(Task):
    """Themes with examples out of the input; by the hallucination rate.

    Reads `text`, a list of comments or one text, and `target`, a list of themes:
    {"theme": text, "examples": [text, …]}.

    Attributes:
      fuzzy: share of an example that has to stand in the input in one piece.
    """

    fuzzy: float

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.fuzzy <= 1:
            raise InputError(f"evaluate.fuzzy={self.fuzzy}: give a share in (0, 1], 1 for exact")

    @functools.cached_property
    def measures(self) -> Metrics:
        return RowMetrics(
            {"hallucination_rate": ("invented", "examples"), "malformed": ("malformed", "")}
        )

    @property
    def scoring(self) -> dict[str, Any]:
        return {"fuzzy": self.fuzzy}

    def read(self, row: Row, language: str) -> list[Example]:
        comments, found = row.texts("text"), row.get("target")
        if not (isinstance(found, list) and found and all(map(themes.is_theme, found))):
            raise row.refused(
                'no themes; expected is a list of {"theme": text, "examples": [text, …]}'
            )
        target = json.dumps({"themes": found}, ensure_ascii=False)
        return [Example(row.name(), language, "\n".join(comments), target)]

    def judge(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Judged]:
        found = []
        for example, output in zip(examples, outputs, strict=True):
            quoted = themes.read(output, example.text, fuzzy=self.fuzzy)
            scores = {
                "examples": float(len(quoted.examples)),
                "invented": float(len(quoted.invented)),
                "malformed": float(quoted.malformed),
            }
            parsed = {"examples": list(quoted.examples), "invented": list(quoted.invented)}
            found.append(Judged(None if quoted.malformed else parsed, scores))
        return found
