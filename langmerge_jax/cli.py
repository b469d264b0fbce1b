"""What the doors share: flags, logging, and how bad input ends."""

import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from langmerge_jax.errors import InputError

# The flags below belong to the door that asks for them, so that its --help shows them.
flags.disclaim_key_flags()


def define_flags() -> None:
    """Defines --config and --workdir as flags of the door that calls this."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Python file with get_config(), such as configs/demo.py. Single settings are changed by "
        "--config.<key>=<value>.",
        lock_config=True,
    )
    flags.DEFINE_string(
        "workdir", None, "Where results go; runs/<name of the config file> by default."
    )


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags; anything wrong with them ends in one line and status 2."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _bad_input(str(error))
    except (AttributeError, KeyError) as error:
        _bad_input(_unknown_key(argv, str(error)))
    except (OSError, ImportError) as error:
        _bad_input(str(error))
    raise AssertionError("unreachable")


def _unknown_key(argv: Sequence[str], report: str) -> str:
    """Says which setting the config lacks, from ml_collections' report of one part of its name."""
    given = [arg.lstrip("-").partition("=")[0] for arg in argv[1:]]
    lacking = re.findall(r"'(\w+)", report)
    keys = [key for key in given if any(part in lacking for part in key.split("."))]
    nearest = re.search(r'Did you mean "(\w+)"', report)
    advice = f"did you mean {nearest[1]}?" if nearest else "langmerge_jax/config.py names them all"
    return f"--{keys[0]}: the config has no such setting; {advice}" if keys else report


def _bad_input(message: str) -> None:
    line = re.sub(r"\s+", " ", message).strip()
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def run(main: Callable[[], None]) -> None:
    """Runs a door: parses flags, sets up logging, and turns InputError into status 2."""

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            _bad_input(f"unknown argument {argv[1]!r}; settings are given as --config.key=value")
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
        )
        # jax reports every platform it does not find, transformers that there is no torch.
        logging.getLogger("jax").setLevel(logging.WARNING)
        # Orbax tells twenty lines of each checkpoint.
        logging.getLogger("absl").setLevel(logging.WARNING)
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        try:
            main()
        except InputError as error:
            _bad_input(str(error))

    app.run(guarded, flags_parser=_parse_flags)


def config_and_workdir() -> tuple[ml_collections.ConfigDict, pathlib.Path]:
    """Returns what --config and --workdir say.

    Raises:
      InputError: without --config, or if it cannot be loaded.
    """
    if flags.FLAGS.config is None:
        raise InputError("--config is missing; give a config file such as configs/demo.py")
    path = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    if not path.is_file():
        raise InputError(f"--config={path}: no such file; configs/ holds those that come with it")
    try:
        config = flags.FLAGS.config.copy_and_resolve_references()
    except OSError as error:
        # ml_collections keeps why a config file could not be loaded until it is used.
        raise InputError(f"--config={path}: {error}") from error
    return config.lock(), pathlib.Path(flags.FLAGS.workdir or f"runs/{path.stem}")
