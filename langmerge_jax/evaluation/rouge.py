"""ROUGE by words or, where a script writes none apart, by characters.

rouge-score's own tokenizer deletes all but a to z and 0 to 9: Japanese and Chinese score zero and
words fall apart at their accents. On text of these characters alone both give the same scores.

References: Lin 2004.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

ROUGE = ("rouge1", "rouge2", "rougeL")

# Ranges of the scripts that write no spaces: Han, kana, Thai, Lao, Myanmar, Khmer.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{UNSPACED}]")
# Zero-width (non-)joiners shape the letters of one word.
_JOINERS = "\u200c\u200d"


class UnicodeTokenizer:
    """Cuts text of any script into tokens, in the form that rouge-score takes.

    Text is brought to NFKC and lower case. Letters and digits that follow one another are a token,
    marks belong to the letter before them; in scripts without spaces each letter is a token.
    """

    # Stands in results beside the scores.
    name = "unicode-1"

    def tokenize(self, text: str) -> list[str]:
        """Returns the tokens of a text."""
        tokens: list[str] = []
        open_word = False
        for char in unicodedata.normalize("NFKC", text).lower():
            if char in _JOINERS:
                continue
            kind = unicodedata.category(char)[0]
            if kind == "M" and tokens and (open_word or _UNSPACED.match(tokens[-1])):
                tokens[-1] += char
            elif kind not in "LN":
                open_word = False
            elif _UNSPACED.match(char):
                tokens.append(char)
                open_word = False
            elif open_word:
                tokens[-1] += char
            else:
                tokens.append(char)
                open_word = True
        return tokens


def rouge(
    references: Sequence[str], outputs: Sequence[str], *, ascii_only: bool = False
) -> dict[str, np.ndarray]:
    """Scores outputs against one reference each.

    Args:
      references, outputs: n texts each.
      ascii_only: with rouge-score's own tokenizer, to stand beside published values.

    Returns:
      {metric: F-measures, float64 [n]}, for ROUGE-1, ROUGE-2 and ROUGE-L. Two texts without any
      token in common, such as an empty output, score 0.

    Raises:
      ValueError: if there are not as many outputs as references.
    """
    scorer = _scorer(ascii_only)
    found = [scorer.score(a, b) for a, b in zip(references, outputs, strict=True)]
    return {name: np.array([one[name].fmeasure for one in found], np.float64) for name in ROUGE}


@functools.cache
def _scorer(ascii_only: bool):
    # Slow to import.
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(ROUGE, tokenizer=None if ascii_only else UnicodeTokenizer())
