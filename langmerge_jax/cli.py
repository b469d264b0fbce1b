"""What the doors share: flags, logging, and how bad input ends."""

import errno
import logging
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Sequence

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from langmerge_jax import watch
from langmerge_jax.errors import InputError
from langmerge_jax.files import NO_ROOM

# What a user can do about an OSError; anything else wants a look at the path.
_WAYS_OUT = {
    **dict.fromkeys(NO_ROOM, "free space or choose another directory"),
    errno.EEXIST: "no directory can be made there, choose another",
    errno.ENOTDIR: "no directory can be made there, choose another",
    errno.EACCES: "get permission or choose another directory",
    errno.EPERM: "get permission or choose another directory",
    errno.EROFS: "choose another directory",
}

# Where a door says what to do about memory.
PLAN = "python -m langmerge_jax.plan --config=… says beforehand what fits"

# What the collectives of CPUs raise, where they wait for a process that is gone.
_GLOO = re.compile(r"Gloo [\w-]+ failed")

# The flags below belong to the door that asks for them, so that its --help shows them.
flags.disclaim_key_flags()


def define_flags() -> None:
    """Defines --config and --workdir as flags of the door that calls this."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Python file with get_config(), such as configs/demo.py; what stands behind a colon is "
        "handed to it. Single settings are changed by --config.<key>=<value>.",
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
        _bad_input(_refused(error))
    except (AttributeError, KeyError) as error:
        _bad_input(_unknown_key(argv, str(error)))
    except (OSError, ImportError) as error:
        _bad_input(str(error))
    raise AssertionError("unreachable")


def _refused(error: flags.Error) -> str:
    """What is wrong with a flag; of a config file's own words without the traceback around them."""
    flag, _, traceback = str(error).partition(": Error whilst parsing config file")
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    # A file whose get_config takes nothing is told so by Python. Other errors are bugs in the file.
    known = isinstance(cause, InputError) or str(cause).startswith("get_config() takes")
    return f"{flag}: {cause}" if traceback and known else str(error)


def _unknown_key(argv: Sequence[str], report: str) -> str:
    """Says which setting the config lacks, from ml_collections' report of one part of its name."""
    given = [arg.lstrip("-").partition("=")[0] for arg in argv[1:]]
    lacking = re.findall(r"'(\w+)", report)
    keys = [key for key in given if any(part in lacking for part in key.split("."))]
    nearest = re.search(r'Did you mean "(\w+)"', report)
    advice = f"did you mean {nearest[1]}?" if nearest else "langmerge_jax/config.py names them all"
    return f"--{keys[0]}: the config has no such setting; {advice}" if keys else report


def _bad_input(message: str) -> None:
    _end(message, 2)


def _end(message: str, status: int) -> None:
    line = re.sub(r"\s+", " ", message).strip()
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)


def _said(error: OSError) -> str:
    """What the system refused, and the way out; some libraries raise it with a text alone."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    if error.filename is None:
        place, way_out = "", _WAYS_OUT.get(error.errno)
    else:
        place, way_out = f"{error.filename}: ", _WAYS_OUT.get(error.errno, "check that path")
    return place + error.strerror + (f"; {way_out}" if way_out else "")


def _terminate(number: int, frame: object) -> None:
    del frame
    sys.exit(128 + number)


def run(main: Callable[..., None], *, arguments: bool = False, too_much: str = "") -> None:
    """Runs a door: parses flags, sets up logging, and says in one line what went wrong.

    InputError ends with status 2, OSError and a loss that is not finite with status 1. SIGTERM, by
    which a scheduler ends a job, unwinds the door with status 143, so that no half result is left;
    a process that lost another one of its job ends with that status too.

    Args:
      main: the door.
      arguments: whether it is given what stands beside the flags, which is refused otherwise.
      too_much: what can be done where the memory of a device does not suffice.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            answered(argv)
        except SystemExit as ended:
            watch.ends(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
            raise
        except BaseException:
            watch.ends(1)
            raise
        watch.ends(0)

    def answered(argv: Sequence[str]) -> None:
        signal.signal(signal.SIGTERM, _terminate)
        if len(argv) > 1 and not arguments:
            _bad_input(f"unknown argument {argv[1]!r}; settings are given as --config.key=value")
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
        )
        # jax reports every platform it does not find, transformers that there is no torch.
        logging.getLogger("jax").setLevel(logging.WARNING)
        # Orbax tells twenty lines of each checkpoint, and of what it raises the whole stack.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        try:
            main(*([argv[1:]] if arguments else []))
        except InputError as error:
            _bad_input(str(error))
        except OSError as error:
            _end(_said(error), 1)
        except FloatingPointError as error:  # A loss that is not finite.
            _end(str(error), 1)
        except (ValueError, RuntimeError) as error:
            if _GLOO.search(str(error)):
                watch.lost()
            if "RESOURCE_EXHAUSTED" not in str(error) or not too_much:
                raise
            what = str(error).splitlines()[0].rstrip(".")
            _end(f"the memory does not suffice ({what}); {too_much}", 1)

    app.run(guarded, flags_parser=_parse_flags)


def config_and_workdir() -> tuple[ml_collections.ConfigDict, pathlib.Path]:
    """Returns what --config and --workdir say.

    Raises:
      InputError: without --config, or if it cannot be loaded.
    """
    if flags.FLAGS.config is None:
        raise InputError("--config is missing; give a config file such as configs/demo.py")
    # What stands behind a colon is the file's own to understand.
    name, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise InputError(f"--config={path}: no such file; configs/ holds those that come with it")
    try:
        config = flags.FLAGS.config.copy_and_resolve_references()
    except OSError as error:
        # ml_collections keeps why a config file could not be loaded until it is used.
        raise InputError(f"--config={path}: {error}") from error
    default = "-".join(["runs/" + path.stem, *([variant] if variant else [])])
    return config.lock(), pathlib.Path(flags.FLAGS.workdir or default)


def span(flag: str, text: str | None) -> range:
    """Returns the steps that a flag names as FIRST:END; none without a text.

    Raises:
      InputError: if the text says something else, or names no step.
    """
    if text is None:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", text)
    steps = range(*map(int, found.groups())) if found else range(0)
    if not steps:
        raise InputError(
            f"--{flag}={text}: not FIRST:END with FIRST before END; write 10:15 for the steps 10 "
            "to 14"
        )
    return steps
