"""Rows that differ by a number, for trainings that learn nothing."""

import json
import pathlib
from collections.abc import Mapping
from itertools import cycle, islice

LABELS = ("positive", "negative", "neutral")


def write_rows(folder: pathlib.Path, counts: Mapping[str, int]) -> None:
    """Writes so many training rows of each language, `<language>/train.jsonl`."""
    for language, count in counts.items():
        path = folder / language / "train.jsonl"
        path.parent.mkdir()
        rows = [
            {"text": f"{language} {number}: good {'bad ' * (number % 5)}", "label": label}
            for number, label in enumerate(islice(cycle(LABELS), count))
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
