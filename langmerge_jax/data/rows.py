"""Rows as they lie somewhere: local files, the Hugging Face hub, TensorFlow Datasets."""

import pathlib

from langmerge_jax.data.files import file_table
from langmerge_jax.data.hubs import hub_table, tfds_table
from langmerge_jax.data.table import MissingSplit, Table
from langmerge_jax.errors import InputError

__all__ = ["MissingSplit", "Table", "read_table"]


def read_table(path: str, *, split: str, language: str = "", language_field: str = "") -> Table:
    """Reads one language's split.

    Args:
      path: where the rows lie. One of
        `hf:NAME[@REVISION]`, a data set of the Hugging Face hub or a local directory in its form;
        `tfds:NAME[/CONFIG][:VERSION]`, a data set of TensorFlow Datasets that is prepared under
        the environment variable `TFDS_DATA_DIR`;
        a file: `.jsonl` or `.ndjson`; `.json` with a list of objects, with JSON lines, or with
        objects in objects, of which the innermost are rows and get the keys that lead to them as
        `key_1`, `key_2`, …; `.csv` or `.tsv` with a header; `.parquet`.
        `{language}` is filled in for tfds and files, `{split}` for files; a file's path may hold
        `*`, see `file_table`.
      split: such as `train`.
      language: such as `en`. Without `language_field` it is the configuration of a hub data set,
        or the folder of a local directory that has no configurations.
      language_field: column with the language, if one file or data set holds several; only the
        rows with `language` in it are kept.

    Returns:
      The rows, in their order; at least one.

    Raises:
      InputError: if they cannot be read, or there are none; it names file and line.
    """
    if path.startswith("hf:"):
        configuration = "" if language_field else language
        table = hub_table(path.removeprefix("hf:"), split, configuration)
    elif path.startswith("tfds:"):
        name = path.removeprefix("tfds:").replace("{language}", language)
        table = tfds_table(name, split)
    else:
        # Not str.format: a path may hold braces of its own.
        file = path.replace("{language}", language).replace("{split}", split)
        table = file_table(pathlib.Path(file))
    if not len(table):
        raise InputError(f"{table.name}: no rows")
    return table.where(language_field, language) if language_field else table
