"""One row of any task, whatever it was read from."""

import dataclasses
import functools
import unicodedata


@dataclasses.dataclass(frozen=True)
class Example:
    """A question to the model with its right answer.

    Attributes:
      id: stable name within its language and split.
      language: code such as `en`.
      text: what is asked about: a text to judge, a question, an article, comments.
      target: the right answer: a label, a summary, JSON.
      choices: those of a question that has them.
      task: its name where a run has several.
      group: what must not be torn apart by splits, such as the article that a section is from.
    """

    id: str
    language: str
    text: str
    target: str
    choices: tuple[str, ...] = ()
    group: str = ""
    task: str = ""

    @functools.cached_property
    def asked(self) -> str:
        """What is asked, in a form in which rows are the same that differ in spacing or case."""
        text = unicodedata.normalize("NFKC", "\n".join([self.text, *self.choices]))
        return " ".join(text.casefold().split())
