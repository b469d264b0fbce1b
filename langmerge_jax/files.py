"""Writing so that a reader never meets half a file."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from langmerge_jax.errors import InputError

# What an OSError says where there is no room: on the device, or in the user's share of it.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def finished_directory(
    path: pathlib.Path, *, check: Callable[[pathlib.Path], None] | None = None
) -> Iterator[pathlib.Path]:
    """Yields a directory to fill, which takes the name `path` once the block ends well.

    If `path` exists, it is replaced; a link is followed, so that it goes on pointing where it did.
    If the block ends with an exception, `path` is what it was, and nothing is left beside it.

    Killed anywhere, `path` is the old directory, the new one, or nothing, never half of one. It is
    nothing only between the two renames that POSIX needs to put one directory in the place of
    another that is not empty; the old one is then whole, and the next call for `path` puts it back
    before it begins. That call also removes what else a killed one has left.

    Args:
        path: The directory to make.
        check: Raises if what is at `path` must not be replaced. It is called with `path` before the
            block, and again just before the replacement.

    Raises:
        InputError: If another process is writing `path`, as far as the file system has locks.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    work = _beside(path, "unfinished")
    work.mkdir(exist_ok=True)
    lock = os.open(work, os.O_RDONLY)
    try:
        _lock(lock, path)
        try:
            _put_back(path)
            _remove_left(path)
            _empty(work)
            if check is not None:
                check(path)
            yield work
            if check is not None:
                check(path)
            _replace(path, work)
        except OSError as error:
            # A write does not say what it wrote to.
            if error.errno in NO_ROOM and error.filename is None:
                error.filename = str(path)
            raise
        finally:
            # Whatever fails here must not hide why the block ended; the next call does it again.
            with contextlib.suppress(OSError):
                _put_back(path)
                _remove_left(path)
                shutil.rmtree(work, ignore_errors=True)
    finally:
        os.close(lock)


def _beside(path: pathlib.Path, state: str) -> pathlib.Path:
    return path.with_name(f".{path.name}.{state}")


def _lock(descriptor: int, path: pathlib.Path) -> None:
    """Locks a directory for as long as this process lives, so that what is left is told from it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{path}: another process is writing it; wait for that, or choose another directory"
        ) from None
    except OSError:
        pass  # Some network file systems have no locks.


@contextlib.contextmanager
def alone_in(directory: pathlib.Path, *, waits: bool) -> Iterator[None]:
    """Keeps others that ask for the same directory out of the block, as far as there are locks.

    Args:
        directory: It is made if it is not there.
        waits: Whether one that comes later waits for its turn.

    Raises:
        InputError: If another process is in there, and this one is not to wait.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY)
    try:
        if waits:
            with contextlib.suppress(OSError):  # Some network file systems have no locks.
                fcntl.flock(lock, fcntl.LOCK_EX)
        else:
            _lock(lock, directory)
        yield
    finally:
        os.close(lock)


def _replace(path: pathlib.Path, new: pathlib.Path) -> None:
    try:
        new.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        path.rename(_beside(path, "replaced"))
        new.rename(path)


def _put_back(path: pathlib.Path) -> None:
    """Gives `path` back what a replacement took away, unless the new one is there."""
    replaced = _beside(path, "replaced")
    if not replaced.exists():
        return
    if path.exists():
        # Not removed under this name: half of it would be put back if `path` went away.
        remove_directory(replaced)
    else:
        replaced.rename(path)


def _remove_left(path: pathlib.Path) -> None:
    """Removes what killed calls left beside `path`, but for what `path` may need."""
    removed = _beside(path, "removed").name
    # What was beside these in their turn.
    nested = tuple(f".{_beside(path, state).name}." for state in ("unfinished", "replaced"))
    for left in path.parent.iterdir():
        if left.name == removed or left.name.startswith(nested):
            shutil.rmtree(left)


def _empty(directory: pathlib.Path) -> None:
    for left in directory.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def remove_directory(path: pathlib.Path) -> None:
    """Removes a directory, if it is there, so that no reader meets half of it."""
    removed = _beside(path, "removed")
    remove_tree(removed)
    if path.exists():
        path.rename(removed)
        remove_tree(removed)


def remove_tree(path: pathlib.Path) -> None:
    """Removes a directory that nobody reads, though another process may be at the same."""
    while path.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a whole text file, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.unfinished")
    work.write_text(text, encoding="utf-8")
    os.replace(work, path)


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      InputError: if it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); remove it to have it remade") from None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: pathlib.Path, rows: Iterable[Any]) -> None:
    """Writes one JSON value a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: pathlib.Path) -> list[Any]:
    """Reads a file that `write_jsonl` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
