"""No reader meets half a result, wherever the writer is killed or fails."""

import errno
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from langmerge_jax.errors import InputError
from langmerge_jax.files import finished_directory, remove_directory
from tests.doors import ROOT

# A process that is gone before or after its n-th call of a function, as if killed there.
KILLED = """
import os, pathlib, shutil, sys
from tests.test_files import write
owner, name, n, after = {"Path": pathlib.Path, "shutil": shutil}[sys.argv[1]], *sys.argv[2:5]
function, calls = getattr(owner, name), []
def killing(*args, **kwargs):
    calls.append(args)
    if len(calls) == int(n) and after == "before":
        os._exit(9)
    try:
        return function(*args, **kwargs)
    finally:
        if len(calls) == int(n):
            os._exit(9)
setattr(owner, name, killing)
write(pathlib.Path(sys.argv[5]), "new")
"""


def write(path, text, **options):
    with finished_directory(path, **options) as work:
        for name in "abc":
            (work / name).write_text(text)


def fill(path, within, **options):
    """Calls `within` where a writer has half of its directory."""
    with finished_directory(path, **options) as work:
        (work / "a").write_text("half")
        within()


def raising(error):
    def within():
        raise error

    return within


def contents(path):
    return [p.read_text() for p in sorted(path.iterdir())] if path.exists() else None


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def process(*arguments, **options):
    return subprocess.Popen([sys.executable, "-c", *map(str, arguments)], cwd=ROOT, **options)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        ("Path", "write_text", 2),
        ("Path", "rename", 1),
        ("Path", "rename", 2),
        ("Path", "rename", 3),
        ("Path", "rename", 4),
        ("shutil", "rmtree", 1),
        ("shutil", "rmtree", 2),
    ],
)
def test_killed_anywhere_the_directory_is_whole_and_the_old_one_is_not_lost(
    owner, name, call, moment, tmp_path
):
    path = tmp_path / "x"
    write(path, "old")
    killed = process(KILLED, owner, name, call, moment, path)
    assert killed.wait() == 9
    assert contents(path) in (["old"] * 3, ["new"] * 3, None)

    # A next call has it back even if it comes to nothing.
    with pytest.raises(KeyError):
        fill(path, raising(KeyError()))
    assert contents(path) in (["old"] * 3, ["new"] * 3)
    assert names(tmp_path) == ["x"]
    write(path, "newest")
    assert names(tmp_path) == ["x"]
    assert contents(path) == ["newest"] * 3


def test_half_of_what_was_being_removed_is_never_put_back(tmp_path):
    path = tmp_path / "x"
    write(path, "old")
    # The new one is there, the old one is on its way out.
    assert process(KILLED, "shutil", "rmtree", 1, "before", path).wait() == 9
    assert contents(path) == ["new"] * 3
    remove_directory(path)
    with pytest.raises(KeyError):
        fill(path, raising(KeyError()))
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_block_that_ends_with_an_exception_leaves_what_was_there(tmp_path, error, old):
    if old:
        write(tmp_path / "x", old)
    with pytest.raises(error):
        fill(tmp_path / "x", raising(error()))
    assert names(tmp_path) == (["x"] if old else [])
    assert contents(tmp_path / "x") == ([old] * 3 if old else None)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_exception_between_the_renames_leaves_no_hole(tmp_path, monkeypatch, call):
    write(tmp_path / "x", "old")
    rename, calls = pathlib.Path.rename, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return rename(*args)

    monkeypatch.setattr(pathlib.Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x", "new")
    assert contents(tmp_path / "x") == ["old"] * 3
    assert names(tmp_path) == ["x"]


def test_an_empty_directory_is_replaced_in_one_step(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    renamed, rename = [], pathlib.Path.rename
    monkeypatch.setattr(pathlib.Path, "rename", lambda *a: (renamed.append(a), rename(*a)))
    write(tmp_path / "x", "new")
    assert renamed == [(tmp_path / ".x.unfinished", tmp_path / "x")]
    assert contents(tmp_path / "x") == ["new"] * 3


def test_what_killed_writers_have_left_beside_is_removed(tmp_path):
    ours = (".x.unfinished", "..x.unfinished.unfinished", "..x.unfinished.replaced", ".x.removed")
    others = (".y.unfinished", ".x.unfinished.mine", ".x.notes")
    for name in ours + others:
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "file").touch()
    write(tmp_path / "x", "new")
    assert names(tmp_path) == sorted(("x", *others))
    assert contents(tmp_path / "x") == ["new"] * 3


def test_a_check_that_fails_at_the_end_keeps_what_has_come_meanwhile(tmp_path):
    def check(path):
        if (path / "notes").exists():
            raise InputError("notes")

    write(tmp_path / "x", "old")
    with pytest.raises(InputError):
        fill(tmp_path / "x", lambda: (tmp_path / "x/notes").write_text("mine"), check=check)
    assert contents(tmp_path / "x") == ["old"] * 3 + ["mine"]
    assert names(tmp_path) == ["x"]


def test_a_link_goes_on_pointing_where_it_did(tmp_path):
    (tmp_path / "live").symlink_to("v1")
    for text in ("old", "new"):
        write(tmp_path / "live", text)
        assert contents(tmp_path / "v1") == [text] * 3
    assert names(tmp_path) == ["live", "v1"]
    assert os.readlink(tmp_path / "live") == "v1"


def test_two_writers_do_not_fill_one_directory(tmp_path):
    path = tmp_path / "x"
    code = (
        "import pathlib, sys\nfrom langmerge_jax.files import finished_directory\n"
        "with finished_directory(pathlib.Path(sys.argv[1])) as work:\n"
        "    (work / 'a').write_text('first')\n    print(flush=True)\n    sys.stdin.readline()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with process(code, path, **pipes) as first:
        first.stdout.readline()
        with pytest.raises(InputError, match="x: another process is writing it"):
            write(path, "second")
        first.communicate(b"\n")
    assert contents(path) == ["first"]
    # What a killed one held is free.
    with process(code, path, **pipes) as killed:
        killed.stdout.readline()
        killed.send_signal(signal.SIGKILL)
    write(path, "second")
    assert contents(path) == ["second"] * 3
    assert names(tmp_path) == ["x"]


def test_a_full_disk_is_told_with_the_directory(tmp_path):
    with pytest.raises(OSError, match="No space left") as error:
        fill(tmp_path / "x", raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert error.value.filename == str(tmp_path / "x")
    assert names(tmp_path) == []


def test_removing_what_is_not_there_is_no_error(tmp_path):
    remove_directory(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
