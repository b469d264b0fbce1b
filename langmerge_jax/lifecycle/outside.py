"""Outputs that were made elsewhere, scored like those of a run."""

import pathlib
from collections.abc import Mapping
from typing import Any

from langmerge_jax.data.rows import read_table
from langmerge_jax.errors import InputError
from langmerge_jax.files import read_json
from langmerge_jax.lifecycle.prediction import (
    Answers,
    common_inputs,
    keep_rows,
    mode_of,
    write_predictions,
)
from langmerge_jax.lifecycle.run import COMBINED, Run
from langmerge_jax.lifecycle.scores import ANSWERED
from langmerge_jax.lifecycle.stages import INPUTS, digest, is_current
from langmerge_jax.lifecycle.variants import BASE, INDIVIDUAL, ROUTED, TUNED
from langmerge_jax.merging import parse


def score_outside(run: Run, path: str) -> dict[str, dict[str, str]]:
    """Scores outputs that a server or another program made, beside what the run has answered.

    No model is loaded. The outputs become the predictions of a variant with the file's name.

    Args:
      path: a file that `rows.read_table` reads, perhaps with `{language}`, of rows {id, output} and
        where languages share it {language}; ids are those of `test/<language>.jsonl`, which this
        writes, with the prompts.

    Returns:
      {row of the score table: {language: variant that answered}}, of what has answered so far.

    Raises:
      InputError: if a test row has no output, or several, or an output has no row.
    """
    name = pathlib.Path(path).stem.replace("{language}", "").strip("-_.") or "outside"
    keep_rows(run)
    directory = run.predictions_directory(name)
    recipes = {parse(x).name for x in run.config.merge.recipes}
    taken = name in {BASE, COMBINED, INDIVIDUAL, ROUTED, TUNED} | recipes
    if taken or (directory.exists() and not _is_outside(directory)):
        raise InputError(f"--predictions={path}: {name!r} is a variant of the run; rename the file")
    answers = {language: _read(run, path, language) for language in run.languages}
    inputs = common_inputs(run, "test") | {"outside": digest(answers)}
    if not is_current(directory, inputs):
        write_predictions(run, directory, inputs, answers)
    return _there(run) | {name: dict.fromkeys(run.languages, name)}


def _is_outside(directory: pathlib.Path) -> bool:
    path = directory / INPUTS
    return path.exists() and "outside" in read_json(path)


def _there(run: Run) -> dict[str, dict[str, str]]:
    """The rows of the run's score table that are of today's test rows and task."""
    path, common = run.home / ANSWERED, common_inputs(run, "test")
    mode = mode_of(run)
    rows = read_json(path) if path.exists() else {}

    def current(variant: str) -> bool:
        inputs = run.predictions_directory(variant) / INPUTS
        found = read_json(inputs) if inputs.exists() else {}
        alike = all(found.get(key) == value for key, value in common.items())
        return alike and found.get("mode", mode) == mode

    return {name: parts for name, parts in rows.items() if all(map(current, parts.values()))}


def _read(run: Run, path: str, language: str) -> Answers:
    """The output for each test row of a language."""
    table = read_table(run.path(path), split="test", language=language)
    examples = run.examples(language, "test")
    places = {example.id: i for i, example in enumerate(examples)}
    if len(places) < len(examples):
        ids = [example.id for example in examples]
        twice = next(x for x in ids if ids.count(x) > 1)
        raise InputError(f"two test rows of {language!r} have the id {twice!r}; make ids unique")
    found: Answers = {}
    for i in range(len(table)):
        row = table[i]
        if "language" in row:
            if row["language"] != language:
                continue
        elif len(run.languages) > 1 and "{language}" not in path:
            raise InputError(
                f"{table.place(i)}: no field 'language', by which one file is that of "
                f"{', '.join(run.languages)}; add it, or write {{language}} in the path"
            )
        found[_place(row, table.place(i), places, found, language)] = {"output": row["output"]}
    if missing := [name for name, i in places.items() if i not in found]:
        raise InputError(
            f"{table.name}: {len(missing)} of {len(places)} test rows of {language!r} have no "
            f"output, the first is {missing[0]!r}; an empty text is an output"
        )
    return found


def _place(
    row: Mapping[str, Any],
    where: str,
    places: Mapping[str, int],
    found: Answers,
    language: str,
) -> int:
    if not isinstance(row.get("output"), str):
        raise InputError(f"{where}: the field 'output' is missing or no text")
    name = str(row.get("id"))
    if name not in places:
        raise InputError(f"{where}: {language!r} has no test row with the id {name!r}")
    if places[name] in found:
        raise InputError(f"{where}: a second output for the row {name!r}")
    return places[name]
