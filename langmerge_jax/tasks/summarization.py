"""Summaries of articles, scored by ROUGE and, if a model for it is named, BERTScore."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from langmerge_jax.data.examples import Example
from langmerge_jax.data.fields import Row
from langmerge_jax.evaluation.bertscore import BertScorer, find_encoder, signature
from langmerge_jax.evaluation.metrics import Metrics, RowMetrics
from langmerge_jax.evaluation.rouge import ROUGE, UnicodeTokenizer, rouge
from langmerge_jax.tasks.task import Judged, Task


@dataclasses.dataclass(frozen=True)
class Summarization(Task):
    """An article in, its summary out; by ROUGE-L.

    Reads `text` and `target`, or lists of them, which are sections of one article, and `group`,
    the article.

    Attributes:
      encoder: model of BERTScore, a directory or hub name; "" for ROUGE alone.
      layer: of the encoder; None for the known one.
      encoder_batch: texts at a time.
    """

    encoder: str
    layer: int | None
    encoder_batch: int

    @functools.cached_property
    def measures(self) -> Metrics:
        names = ["rougeL", "rouge1", "rouge2"]
        names += ["bertscore_f1"] if self.encoder else []
        names += [f"{name}_ascii" for name in ("rougeL", "rouge1", "rouge2")]
        return RowMetrics({name: (name, "") for name in names})

    @property
    def scoring(self) -> dict[str, Any]:
        bertscore = {"bertscore": signature(self.encoder, self.layer)} if self.encoder else {}
        return {"rouge": UnicodeTokenizer.name, **bertscore}

    @property
    def encoders(self) -> tuple[str, ...]:
        return (find_encoder(self.encoder, self.layer)[0],) if self.encoder else ()

    @functools.cached_property
    def _bertscore(self) -> BertScorer:
        # Only once there is something to score: nobody who trains needs it.
        return BertScorer(self.encoder, self.layer, self.encoder_batch)

    def read(self, row: Row, language: str) -> list[Example]:
        name, parts = row.name(), ("text", "target", "group")
        found = {part: row.get(part) for part in parts}
        if isinstance(found["text"], list) != isinstance(found["target"], list):
            raise row.refused("several texts need as many targets, and one text has one")
        sections = list(row.each(found))
        return [
            Example(
                name if len(sections) == 1 else f"{name}#{number}",
                language,
                row.as_text("text", section["text"]),
                row.as_text("target", section["target"]),
                group=str(section["group"] or ""),
            )
            for number, section in enumerate(sections)
        ]

    def judge(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Judged]:
        references = [example.target for example in examples]
        found = {name: x.tolist() for name, x in rouge(references, outputs).items()}
        ascii_only = rouge(references, outputs, ascii_only=True)
        found |= {f"{name}_ascii": ascii_only[name].tolist() for name in ROUGE}
        if self.encoder:
            found |= {name: x.tolist() for name, x in self._bertscore(outputs, references).items()}
        return [
            Judged(output, {name: values[i] for name, values in found.items()})
            for i, output in enumerate(outputs)
        ]
