"""Which results are there and still good.

Every result is a directory that says in `inputs.json` what it was made from: settings as they are,
rows and other results by digest. A result whose inputs are the wanted ones is kept; one of other
inputs is made anew. As a result's own digest is that of its inputs, a change spreads to all that
stands on it, and to nothing else.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langmerge_jax.data.examples import Example
from langmerge_jax.files import finished_directory, read_json, write_json

logger = logging.getLogger(__name__)

INPUTS = "inputs.json"
_SAMPLE = 1 << 20
# Weights, settings and tokenizers; not what a hub or a server puts beside them.
_MEANT = (".safetensors", ".json", ".jinja", ".model")


def digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_rows(rows: Sequence[Example]) -> str:
    """Returns the digest of examples in their order, wherever their file lies."""
    return digest([(row.language, row.text, row.target, *row.choices) for row in rows])


def fingerprint(directory: pathlib.Path) -> str:
    """Returns a digest of a directory that was not made here, such as a base model or an adapter.

    Of the files that make a model or an adapter names, sizes and contents count, of large ones 16
    samples spread over them: reading 16 GB of weights to find out that nothing is to be done would
    take longer than most of what is done.
    """
    total = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if not path.is_file() or path.suffix not in _MEANT:
            continue
        size = path.stat().st_size
        total.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= 16 * _SAMPLE:
                total.update(file.read())
                continue
            for part in range(16):
                file.seek((size - _SAMPLE) * part // 15)
                total.update(file.read(_SAMPLE))
    return total.hexdigest()


def identity(directory: pathlib.Path) -> str:
    """Returns the digest of a result: of its inputs if it was made here, else of its contents."""
    path = directory / INPUTS
    return digest(read_json(path)) if path.exists() else fingerprint(directory)


def is_current(directory: pathlib.Path, inputs: Mapping[str, Any]) -> bool:
    """Returns whether a result is there, made from exactly these inputs.

    A directory without `inputs.json`, such as an adapter that was put there by hand, is taken as
    it is.
    """
    if not directory.exists():
        return False
    if not (directory / INPUTS).exists():
        logger.info("%s: was not made here, taken as it is", directory)
        return True
    found, wanted = read_json(directory / INPUTS), json.loads(json.dumps(inputs))
    if found == wanted:
        return True
    changed = [k for k in sorted({*found, *wanted}) if found.get(k) != wanted.get(k)]
    logger.info("%s: made anew, for another %s", directory, ", ".join(changed))
    return False


@contextlib.contextmanager
def making(directory: pathlib.Path, inputs: Mapping[str, Any]) -> Iterator[pathlib.Path]:
    """Yields a directory to fill, which becomes the result `directory` if the block ends well."""
    with finished_directory(directory) as work:
        yield work
        write_json(work / INPUTS, inputs)
