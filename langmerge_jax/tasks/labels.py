"""Tasks whose answer is one of a few labels: sentiment and commonsense reasoning."""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence

from langmerge_jax.data.encoding import as_answer
from langmerge_jax.data.examples import Example
from langmerge_jax.data.fields import Row
from langmerge_jax.errors import InputError
from langmerge_jax.evaluation.metrics import ClassificationMetrics, Metrics, RowMetrics
from langmerge_jax.evaluation.rouge import UNSPACED
from langmerge_jax.tasks.task import CHOICE, GENERATION, Judged, Task


@dataclasses.dataclass(frozen=True)
class LabelTask(Task):
    """One of a few labels is right.

    Attributes:
      labels: in the order used for scores.
      answers: {language: {label: words}} that are the answer where it is not the label itself.
      names: {value in the data: label} where the data has others.
    """

    labels: tuple[str, ...]
    answers: Mapping[str, Mapping[str, str]]
    names: Mapping[str, str]

    modes = (CHOICE, GENERATION)

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise InputError(f"task.labels={self.labels}: name two or more, each once")
        for language, words in self.answers.items():
            if set(words) != set(self.labels) or len(set(words.values())) != len(words):
                raise InputError(
                    f"task.answers.{language}={dict(words)}: give each of "
                    f"{', '.join(self.labels)} words of its own"
                )

    def words(self, language: str) -> tuple[str, ...]:
        """Returns the answer that stands for each label, in their order."""
        of = self.answers.get(language, {})
        return tuple(of.get(label, label) for label in self.labels)

    def answer(self, example: Example) -> str:
        return self.words(example.language)[self.labels.index(example.target)]

    def options(self, tokenizer, language: str) -> list[list[int]]:
        """Returns the token ids of each label as an answer, without the end token."""
        return [as_answer(tokenizer, words) for words in self.words(language)]

    def reserved(self, tokenizer, language: str) -> int:
        return max(map(len, self.options(tokenizer, language))) + 1

    def judge(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Judged]:
        found = []
        for example, output in zip(examples, outputs, strict=True):
            label = self.parse(output, example.language)
            scores = {"right": float(label == example.target), "malformed": float(label is None)}
            found.append(Judged(label, scores))
        return found

    def parse(self, output: str, language: str) -> str | None:
        """Returns the label whose words come first in an output, of these the longest.

        Letters, as those of choices, are looked for as capitals, and first where one stands as a
        choice is named: before a point, a colon, a bracket, or the end.
        """
        text = unicodedata.normalize("NFKC", output).strip()
        places = []
        for label, words in zip(self.labels, self.words(language), strict=True):
            sought = unicodedata.normalize("NFKC", words).strip()
            if text.strip(_AROUND).casefold() == sought.casefold():
                return label
            flags = 0 if len(sought) == 1 else re.IGNORECASE
            for match in re.finditer(_WHOLE.format(re.escape(sought)), text, flags):
                named = len(sought) > 1 or _NAMED.match(text, match.end())
                places.append((not named, match.start(), -len(sought), label))
        return min(places)[3] if places else None


# Scripts without spaces write no ends of words: what stands beside theirs is whole.
_LETTER = rf"[^\W{UNSPACED}]"
_WHOLE = rf"(?<!{_LETTER}){{}}(?!{_LETTER}|['’])"
_NAMED = re.compile(r"\s*([.):]|$)")
_AROUND = " \t\n.,:;!?()[]{}*\"'`"


class Sentiment(LabelTask):
    """What a text feels like; by macro F1.

    Reads `text` and `target`, a label.
    """

    @functools.cached_property
    def measures(self) -> Metrics:
        return ClassificationMetrics(self.labels)

    def read(self, row: Row, language: str) -> list[Example]:
        text, value = row.text("text"), row.get("target")
        label = self.names.get(str(value), value)
        if label not in self.labels:
            raise row.refused(f"unknown label {value!r}; known: {', '.join(self.labels)}")
        return [Example(row.name(), language, text, label)]


class Reasoning(LabelTask):
    """A question with choices, of which one is right; by accuracy.

    Reads `text`, the question; `choices`, their texts; `letters`, how the answer names them, if
    not by the task's labels; and `target`: the letter of the right one, or its number from 0. The
    prompt takes the choices, each behind its label, in place of `{choices}`.
    """

    @functools.cached_property
    def measures(self) -> Metrics:
        return RowMetrics({"accuracy": ("right", "")})

    def message(self, example: Example) -> str:
        lines = (f"{label}. {x}" for label, x in zip(self.labels, example.choices, strict=True))
        return self.fill(example, {"{choices}": "\n".join(lines)})

    def read(self, row: Row, language: str) -> list[Example]:
        question, choices, key = row.text("text"), row.texts("choices"), row.get("target")
        if len(choices) != len(self.labels):
            raise row.refused(f"{len(choices)} choices; this task has {len(self.labels)}")
        if len(set(choices)) != len(choices):
            raise row.refused(f"two choices are the same: {', '.join(map(repr, choices))}")
        letters = row.get("letters")
        if isinstance(letters, list):
            known = letters
        else:  # The task's own, or numbers.
            known = list(range(len(choices)) if isinstance(key, int) else self.labels)
        if key not in known or len(known) != len(choices):
            raise row.refused(f"wrong answer key {key!r}; there are {', '.join(map(str, known))}")
        number = known.index(key)
        name = row.name()
        return [Example(name, language, question, self.labels[number], tuple(choices))]

    def _placeholders(self) -> tuple[str, ...]:
        return ("{text}", "{choices}")
