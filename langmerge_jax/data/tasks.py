"""What a model is asked and what it should answer: examples become tokens."""

import dataclasses
import logging
from collections.abc import Sequence

from langmerge_jax.data.sources import Example
from langmerge_jax.errors import InputError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One example as tokens.

    Attributes:
      prompt: token ids up to where the answer starts.
      answer: token ids of the answer with the token that ends it.
      id: of the example, for messages.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    id: str = ""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def as_prompt(tokenizer, message: str) -> list[int]:
    """Returns the token ids of a message, wrapped as the user's by a chat template if there is one.

    The assistant's answer is what should follow.
    """
    if not tokenizer.chat_template:
        return tokenizer.encode(message)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer.encode(text, add_special_tokens=False)


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """Text in, one of a few labels out, as a prompt and the label's words.

    Attributes:
      template: the prompt with the placeholder `{text}`. A tokenizer with a chat template wraps
        it as the user's message, and the answer is the assistant's.
      labels: in the order used for scores.
      max_length: of prompt and answer together, in tokens. Longer texts lose their end, the rest
        of the prompt and the answer never.
    """

    template: str
    labels: tuple[str, ...]
    max_length: int

    def __post_init__(self):
        if "{text}" not in self.template:
            raise InputError(f"prompt template {self.template!r} has no placeholder {{text}}")

    def prompt(self, tokenizer, text: str) -> list[int]:
        """Returns the token ids of the prompt for `text`, not shortened."""
        return as_prompt(tokenizer, self.template.replace("{text}", text))

    def options(self, tokenizer) -> list[list[int]]:
        """Returns the token ids of each label as an answer, without the end token."""
        # Behind a plain template such as "Sentiment:" a word starts with a space; behind a chat
        # template's header it starts the message.
        space = "" if tokenizer.chat_template else " "
        return [tokenizer.encode(space + label, add_special_tokens=False) for label in self.labels]

    def encode(self, tokenizer, examples: Sequence[Example]) -> list[Encoded]:
        """Turns examples into tokens, cutting texts that are too long and saying how many.

        Raises:
          InputError: if the tokenizer names no end token, or the prompt alone is too long.
        """
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer names no eos_token, which ends an answer; set it in the base's "
                "tokenizer_config.json"
            )
        answers = {
            label: (*option, tokenizer.eos_token_id)
            for label, option in zip(self.labels, self.options(tokenizer), strict=True)
        }
        room = self.max_length - max(map(len, answers.values()))
        encoded, cut = [], 0
        for example in examples:
            prompt = self.prompt(tokenizer, example.text)
            if len(prompt) > room:
                prompt = self._cut(tokenizer, example, room)
                cut += 1
            encoded.append(Encoded(tuple(prompt), answers[example.label], example.id))
        if cut:
            logger.warning("%d of %d texts cut to %d tokens", cut, len(examples), self.max_length)
        return encoded

    def _cut(self, tokenizer, example: Example, room: int) -> list[int]:
        """Returns the longest prompt of at most `room` tokens over a beginning of the text."""
        low, high = 0, len(example.text)  # prompt(text[:low]) fits, prompt(text[:high]) does not
        best = self.prompt(tokenizer, "")
        if len(best) > room:
            raise InputError(
                f"max_length={self.max_length} leaves no room for a text: the prompt alone has "
                f"{len(best)} tokens; raise max_length or shorten the prompt"
            )
        while high - low > 1:
            middle = (low + high) // 2
            prompt = self.prompt(tokenizer, example.text[:middle])
            if len(prompt) <= room:
                low, best = middle, prompt
            else:
                high = middle
        return best
