"""No reader meets half a result, wherever the writer is killed."""

import pathlib
import shutil

import pytest

from langmerge_jax.files import finished_directory, remove_directory


class Killed(BaseException):
    pass


def write(path, text):
    with finished_directory(path) as work:
        for name in "abc":
            (work / name).write_text(text)


def contents(path):
    return [p.read_text() for p in sorted(path.iterdir())] if path.exists() else None


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(pathlib.Path, "rename", 0), (pathlib.Path, "rename", 1), (shutil, "rmtree", 0)],
)
@pytest.mark.parametrize("after", [False, True])
def test_a_replacement_is_whole_old_or_absent(owner, name, call, after, tmp_path, monkeypatch):
    write(tmp_path / "x", "old")
    function, calls = getattr(owner, name), []

    def killing(*args, **kwargs):
        calls.append(args)
        if len(calls) - 1 == call and not after:
            raise Killed
        result = function(*args, **kwargs)
        if len(calls) - 1 == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, killing)
    with pytest.raises(Killed):
        write(tmp_path / "x", "new")
    monkeypatch.undo()
    assert contents(tmp_path / "x") in (["old"] * 3, ["new"] * 3, None)
    write(tmp_path / "x", "newest")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert contents(tmp_path / "x") == ["newest"] * 3


def test_what_writers_have_left_aside_is_removed(tmp_path):
    for name in (".x.unfinished", "..x.unfinished-abc", ".y.unfinished", ".x.removed"):
        (tmp_path / name).mkdir()
    write(tmp_path / "x", "new")
    assert {p.name for p in tmp_path.iterdir()} == {"x", ".y.unfinished"}


def test_removing_what_is_not_there_is_no_error(tmp_path):
    remove_directory(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
