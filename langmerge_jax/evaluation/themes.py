"""How much of what a model quotes is not in what it was given.

A model that extracts themes answers with a JSON value such as

  {"themes": [{"theme": "delivery", "examples": ["came two days late"]}]}

whose examples are to be word for word from the input.
"""

import contextlib
import dataclasses
import difflib
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

_QUOTES = str.maketrans(dict.fromkeys("‘’‚‛′`´", "'") | dict.fromkeys("“”„‟″«»「」『』", '"'))
_START = re.compile(r"[\[{]")


@dataclasses.dataclass(frozen=True)
class Quoted:
    """What one output quotes.

    Attributes:
      examples: all of them, as generated.
      invented: those that are not in the input.
      malformed: whether the output holds no JSON value with a list of themes; it then quotes
        nothing.
    """

    examples: tuple[str, ...]
    invented: tuple[str, ...]
    malformed: bool


def read(output: str, source: str, *, fuzzy: float = 1.0) -> Quoted:
    """Reads one output and looks its examples up in the input.

    Both are compared in NFKC, with one kind of quotation marks and one space for any white space;
    marks and spaces around an example do not count, nor does an example that is nothing else.

    Args:
      output: what the model wrote; text around the JSON value is passed over.
      source: the input.
      fuzzy: share of an example that has to stand in the input in one piece, 1 for all of it.
    """
    themes = _themes(output)
    if themes is None:
        return Quoted((), (), True)
    known = _plain(source)
    bare = {x: _plain(x).strip("'\" ") for theme in themes for x in theme}
    examples = tuple(x for theme in themes for x in theme if bare[x])
    invented = tuple(x for x in examples if not _stands_in(bare[x], known, fuzzy))
    return Quoted(examples, invented, False)


def is_theme(value: Any) -> bool:
    """Returns whether a JSON value is a theme: a mapping with a list of texts, `examples`."""
    examples = value.get("examples") if isinstance(value, dict) else None
    return isinstance(examples, list) and all(isinstance(x, str) for x in examples)


def _themes(output: str) -> list[list[str]] | None:
    """The examples of each theme, from the first JSON value in a text, or in another, that has
    themes."""
    for value in _json_values(output):
        themes = value.get("themes") if isinstance(value, dict) else value or None
        if isinstance(themes, list) and all(map(is_theme, themes)):
            return [[_whole(x) for x in theme["examples"]] for theme in themes]
    return None


def _json_values(text: str) -> Iterator[Any]:
    decoder, start = json.JSONDecoder(), 0
    while match := _START.search(text, start):
        start = match.end()
        with contextlib.suppress(ValueError, RecursionError):  # No value starts here.
            yield decoder.raw_decode(text, match.start())[0]


def _plain(text: str) -> str:
    # Before NFKC, which takes some of the marks apart.
    return " ".join(unicodedata.normalize("NFKC", text.translate(_QUOTES)).split())


def _whole(text: str) -> str:
    """A text without the halves of characters that JSON can escape and no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _stands_in(example: str, known: str, fuzzy: float) -> bool:
    if example in known:
        return True
    if fuzzy >= 1:
        return False
    matcher = difflib.SequenceMatcher(None, known, example, autojunk=False)
    return matcher.find_longest_match().size >= fuzzy * len(example)
