"""What a model reads and writes, as tokens."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One example as tokens.

    Attributes:
      prompt: token ids up to where the answer starts.
      answer: token ids of the answer with the token that ends it.
      id: of the example, for messages.
      cut: whether the text in the prompt lost its end.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    id: str = ""
    cut: bool = False

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


def as_answer(tokenizer, words: str) -> list[int]:
    """Returns the token ids of an answer behind a prompt, without the token that ends it."""
    # Behind a plain template such as "Sentiment:" a word starts with a space; behind a chat
    # template's header it starts the message.
    space = "" if tokenizer.chat_template else " "
    return tokenizer.encode(space + words, add_special_tokens=False)
