"""What every task does: examples become prompts, outputs become scores."""

import abc
import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from langmerge_jax.data.encoding import Encoded, as_answer, as_prompt
from langmerge_jax.data.examples import Example
from langmerge_jax.data.fields import Row
from langmerge_jax.errors import InputError
from langmerge_jax.evaluation.metrics import Metrics

logger = logging.getLogger(__name__)

CHOICE, GENERATION = "choice", "generation"


@dataclasses.dataclass(frozen=True)
class Judged:
    """What an output is worth.

    Attributes:
      parsed: what was read from it; None if nothing could be.
      scores: {name: number}, from which the task's measures are computed.
    """

    parsed: Any
    scores: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """Examples in, answers out.

    Attributes:
      template: the prompt with the placeholder `{text}`. A tokenizer with a chat template wraps it
        as the user's message, and the answer is the assistant's.
      templates: {language: template} where one has another.
      max_length: of prompt and answer together, in tokens. Longer texts lose their end, the rest
        of the prompt and the answer never.
      max_new_tokens: of a generated answer.
    """

    template: str
    templates: Mapping[str, str]
    max_length: int
    max_new_tokens: int

    # How outputs come about: by the likeliest of fixed options, or by generation. The first is
    # the default.
    modes: ClassVar[tuple[str, ...]] = (GENERATION,)

    def __post_init__(self):
        for template in (self.template, *self.templates.values()):
            for placeholder in self._placeholders():
                if placeholder not in template:
                    raise InputError(f"prompt template {template!r} has no place for {placeholder}")
        for name in ("max_length", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"task.{name}={getattr(self, name)}: give 1 or more")

    @property
    @abc.abstractmethod
    def measures(self) -> Metrics:
        """The metrics; the first of them decides."""

    @property
    def scoring(self) -> dict[str, Any]:
        """What scores depend on beside outputs and references."""
        return {}

    @property
    def encoders(self) -> tuple[str, ...]:
        """The models that scores are computed by."""
        return ()

    @abc.abstractmethod
    def read(self, row: Row, language: str) -> list[Example]:
        """Returns the examples of a source's row.

        Raises:
          InputError: if the row is bad; it names the row.
        """

    @abc.abstractmethod
    def judge(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[Judged]:
        """Scores one output of each example."""

    def rows(self, examples: Sequence[Example], outputs: Sequence[str]) -> list[dict[str, Any]]:
        """Returns what a predictions file says of outputs: {parsed, reference, scores} of each."""
        return [
            {"parsed": one.parsed, "reference": example.target, "scores": one.scores}
            for example, one in zip(examples, self.judge(examples, outputs), strict=True)
        ]

    def answer(self, example: Example) -> str:
        """Returns the words of the right answer."""
        return example.target

    def message(self, example: Example) -> str:
        """Returns the prompt of an example in words."""
        return self.fill(example, {})

    def fill(self, example: Example, more: Mapping[str, str]) -> str:
        """Returns the template of an example's language with its placeholders filled.

        Args:
          more: {placeholder: what takes its place}, beside `{text}`.
        """
        template = self.templates.get(example.language, self.template)
        values = {"{text}": example.text, **more}
        # At once: what is filled in may itself have braces.
        return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], template)

    def reserved(self, tokenizer, language: str) -> int:
        """Returns how many tokens are kept for the answer."""
        del tokenizer, language
        return self.max_new_tokens

    def encode(self, tokenizer, examples: Sequence[Example]) -> list[Encoded]:
        """Turns examples into tokens, cutting texts that are too long and saying how many.

        Raises:
          InputError: if the tokenizer names no end token, or a prompt without text is too long.
        """
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer names no eos_token, which ends an answer; set it in the base's "
                "tokenizer_config.json"
            )
        answers = [
            (*as_answer(tokenizer, self.answer(x)), tokenizer.eos_token_id) for x in examples
        ]
        prompts = self._prompts(tokenizer, examples, [len(x) for x in answers])
        return [
            Encoded(prompt, answer, example.id, cut)
            for (prompt, cut), answer, example in zip(prompts, answers, examples, strict=True)
        ]

    def prompts(self, tokenizer, examples: Sequence[Example]) -> list[tuple[int, ...]]:
        """Returns what is to be answered, as `encode` has it, whatever the right answers are."""
        return [prompt for prompt, _ in self._prompts(tokenizer, examples, [0] * len(examples))]

    def _prompts(
        self, tokenizer, examples: Sequence[Example], answers: Sequence[int]
    ) -> list[tuple[tuple[int, ...], bool]]:
        """Prompts that leave room for answers of some lengths, and which of them had to be cut."""
        reserved = {x: self.reserved(tokenizer, x) for x in {e.language for e in examples}}
        prompts = []
        for example, length in zip(examples, answers, strict=True):
            room = self.max_length - max(reserved[example.language], length)
            prompt = as_prompt(tokenizer, self.message(example))
            fits = len(prompt) <= room
            if not fits:
                prompt = self._cut(tokenizer, example, room)
            prompts.append((tuple(prompt), not fits))
        if cut := sum(one for _, one in prompts):
            logger.warning("%d of %d texts cut to %d tokens", cut, len(examples), self.max_length)
        return prompts

    def _cut(self, tokenizer, example: Example, room: int) -> list[int]:
        """Returns the longest prompt of at most `room` tokens over a beginning of the text."""

        def over(length: int) -> list[int]:
            beginning = dataclasses.replace(example, text=example.text[:length])
            return as_prompt(tokenizer, self.message(beginning))

        low, high = 0, len(example.text)  # over(low) fits, over(high) does not
        best = over(0)
        if len(best) > room:
            raise InputError(
                f"row {example.id!r} of {example.language!r}: task.max_length={self.max_length} "
                f"leaves no room for its text: the prompt alone has {len(best)} tokens, the answer "
                f"may have {self.max_length - room}; raise it, or lower task.max_new_tokens"
            )
        while high - low > 1:
            middle = (low + high) // 2
            prompt = over(middle)
            if len(prompt) <= room:
                low, best = middle, prompt
            else:
                high = middle
        return best

    def _placeholders(self) -> tuple[str, ...]:
        return ("{text}",)
