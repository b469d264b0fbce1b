"""How long it took until every language was trained, where the trainings really ran apart."""

import pathlib
from collections.abc import Mapping
from typing import Any

from langmerge_jax.files import read_json, write_json
from langmerge_jax.lifecycle.stages import identity

MEASURED = "fan_out.json"


def write_measured(home: pathlib.Path, adapters: Mapping[str, pathlib.Path], **values: Any) -> None:
    """Writes `fan_out.json`.

    Args:
      home: of the run.
      adapters: {language: directory} of what was trained.
      **values: how, and how long it took: `by`, `at_once`, `began`, `ended`, `seconds`, `languages`
        {language: seconds from its start to its end}, `device`, `devices` of each.
    """
    made = {language: identity(path) for language, path in adapters.items()}
    write_json(home / MEASURED, values | {"adapters": made})


def read_measured(
    home: pathlib.Path, adapters: Mapping[str, pathlib.Path]
) -> dict[str, Any] | None:
    """Returns what `write_measured` wrote, if it was of just these adapters as they are."""
    path = home / MEASURED
    if not path.exists():
        return None
    found = read_json(path)
    made = {language: identity(path) for language, path in adapters.items()}
    return found if found["adapters"] == made else None
