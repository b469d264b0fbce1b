"""Rows of published data sets: the Hugging Face hub's, and those of TensorFlow Datasets."""

import contextlib
import os
import re
from collections.abc import Iterator

from langmerge_jax.data.table import MissingSplit, Table
from langmerge_jax.errors import InputError


def hub_table(name: str, split: str, language: str) -> Table:
    """Opens a split of a data set with the `datasets` library.

    Args:
      name: `NAME[@REVISION]` on the hub, or a local directory. Loading scripts are never run.
      split: one of its splits.
      language: the configuration, or the folder of a local directory without configurations; ""
        for the default one.

    Raises:
      InputError: if it cannot be reached or read, or has no such configuration or split.
    """
    # Importing these takes seconds, and local files do not need them.
    import datasets
    from huggingface_hub.errors import HTTPError

    name, revision = _revision(name)
    if not name:
        raise InputError("'hf:' without a name; write hf:NAME, hf:NAME@REVISION or hf:DIRECTORY")
    part = {"name": language} if language else {}
    try:
        with _without_retry_messages():
            # `datasets` knows folders as configurations only where the directory's card says so.
            folder = bool(language) and os.path.isdir(os.path.join(name, language))
            if folder and datasets.get_dataset_config_names(name) == ["default"]:
                part = {"data_dir": language}
            splits = datasets.load_dataset(name, revision=revision, **part)
    except ConnectionError as error:
        raise InputError(
            f"data set {name!r}: {_reason(error)}; check the name and the network, or name a local "
            "directory"
        ) from error
    except datasets.exceptions.DatasetGenerationError as error:
        # It says only that generating failed.
        raise InputError(f"data set {name!r}: {_reason(error.__cause__ or error)}") from error
    # A loading script is a RuntimeError, a file without rows a StopIteration; of what breaks a
    # connection not all is an OSError.
    except (OSError, ValueError, RuntimeError, StopIteration, HTTPError) as error:
        raise InputError(f"data set {name!r}: {_reason(error)}") from error
    if split not in splits:
        raise MissingSplit(f"data set {name!r}: no split {split!r}; there are {', '.join(splits)}")
    rows = splits[split]
    where = f"{name}/{language}" if language else name
    return Table(f"{where}[{split}]", rows, arrow=rows.data)


def tfds_table(name: str, split: str) -> Table:
    """Opens a split of a prepared data set of TensorFlow Datasets, without TensorFlow.

    Args:
      name: `NAME[/CONFIG][:VERSION]`, prepared under `TFDS_DATA_DIR` as `array_record` files.
      split: one of its splits.

    Raises:
      InputError: if the package is missing, or the data set, the version or the split; or if its
        files allow no random access.
    """
    shown = f"'tfds:{name}'"
    if not re.fullmatch(r"\w+(/[\w.+-]+)?(:[\d*]+\.[\d*]+\.[\d*]+)?", name):
        raise InputError(f"{shown}: not of the form tfds:NAME[/CONFIG][:VERSION]")
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise InputError(
            f"{shown} needs {error.name}; pip install 'langmerge-jax[tfds]'"
        ) from error
    folder = os.environ.get("TFDS_DATA_DIR")
    looked = f"TFDS_DATA_DIR is {folder or 'not set'}"
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        splits = builder.info.splits if builder.is_prepared() else None
        rows = builder.as_data_source(split=split) if splits and split in splits else None
    # A version that its code cannot make is an AssertionError.
    except (OSError, ValueError, AssertionError, NotImplementedError) as error:
        raise InputError(f"{shown}, split {split!r}: {_reason(error)}; {looked}") from error
    if splits is None:
        # Preparing may take hours, and TensorFlow: not as a side effect, on every host.
        raise InputError(
            f"{shown} is not prepared, {looked}; prepare it with tensorflow_datasets.builder("
            f"{name!r}, file_format='array_record').download_and_prepare()"
        )
    if rows is None:
        raise MissingSplit(f"{shown}: no split {split!r}; there are {', '.join(splits)}")
    return Table(f"{name}[{split}]", rows)


def _revision(name: str) -> tuple[str, str | None]:
    """Splits `NAME@REVISION`; a local directory may have an @ in its name."""
    if os.path.isdir(name) or "@" not in name:
        return name, None
    name, _, revision = name.rpartition("@")
    return name, revision


def _reason(error: BaseException) -> str:
    """The first line of what went wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextlib.contextmanager
def _without_retry_messages() -> Iterator[None]:
    """Keeps ten lines on retries from hiding the one that tells what failed."""
    from huggingface_hub import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
