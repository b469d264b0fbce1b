"""What a run would ask and learn, before anything is paid for."""

from collections import Counter

import numpy as np

from langmerge_jax.lifecycle.run import Run
from langmerge_jax.reporting.table import Cell, Table
from langmerge_jax.tasks.labels import LabelTask

SHOWN = 3


def preview(run: Run, split: str) -> str:
    """Returns what is asked in each language, with its answers, and tables of lengths and labels.

    Reads rows and the tokenizer, no weights.

    Args:
      split: of the data.
    """
    parts: list[str] = []
    lengths: dict[str, list[Cell]] = {}
    balance: dict[str, Counter] = {}
    for language in run.languages:
        examples = run.examples(language, split)
        encoded = run.task.encode(run.tokenizer, examples)
        for example, tokens in list(zip(examples, encoded, strict=True))[:SHOWN]:
            parts.append(
                f"--- {language}, {split} row {example.id}: {len(tokens.prompt)} + "
                f"{len(tokens.answer)} tokens\n{run.tokenizer.decode(tokens.prompt)}\n"
                f">>> {run.tokenizer.decode(tokens.answer)}"
            )
        counts = np.array([[len(x.prompt), len(x.answer)] for x in encoded])
        whole, found = counts.sum(axis=1), run.source.counts[language, split]
        lengths[language] = [
            Cell(str(len(examples))),
            Cell(f"{whole.mean():.0f}"),
            Cell(f"{np.median(whole):.0f}"),
            Cell(str(whole.max())),
            Cell(f"{counts[:, 1].mean():.1f}"),
            Cell(f"{100 * np.mean([x.cut for x in encoded]):.1f} %"),
            Cell(str(found.repeated + found.elsewhere)),
            Cell(str(found.bad)),
        ]
        balance[language] = Counter(example.target for example in examples)
    tables = [
        Table(
            f"Tokens of the {split} rows with their answers",
            "",
            ["rows", "mean", "median", "longest", "answer", "cut", "doubles", "bad"],
            lengths,
            ["answer: mean. cut: rows that lost their end. doubles, bad: rows left out"],
        )
    ]
    if isinstance(run.task, LabelTask):
        shares = {
            language: [Cell(f"{100 * of[x] / of.total():.1f} %") for x in run.task.labels]
            for language, of in balance.items()
        }
        tables.append(Table(f"Labels of the {split} rows", "", run.task.labels, shares))
    return "\n".join([*parts, *(table.text() for table in tables)])
