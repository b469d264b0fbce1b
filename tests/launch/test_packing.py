"""What goes to the machines is what git does not ignore, and not too much of it."""

import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest

from tests.doors import ROOT

PACK = "import pathlib; from launch import remote; remote.pack(pathlib.Path('out/archive.tar.gz'))"


@pytest.fixture
def checkout(tmp_path) -> pathlib.Path:
    """A copy of what packing takes; no checkout yet."""
    for name in ("launch", "langmerge_jax"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / "launch/remote.py", tmp_path / "launch")
    shutil.copy(ROOT / "langmerge_jax/errors.py", tmp_path / "langmerge_jax")
    return tmp_path


def pack(checkout: pathlib.Path) -> str:
    """Packs it; returns the last line of what was said."""
    command = [sys.executable, "-B", "-c", PACK]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    return (result.stderr.splitlines() or [""])[-1]


def init(checkout: pathlib.Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    (checkout / ".gitignore").write_text("/out/\n/data/\n")


def test_what_git_ignores_stays_here(checkout):
    init(checkout)
    for name in ("data/rows.jsonl", "configs/mine.py"):
        (checkout / name).parent.mkdir()
        (checkout / name).write_text("x")
    # Known to git, and gone.
    subprocess.run(["git", "add", "configs"], cwd=checkout, check=True)
    (checkout / "configs/mine.py").rename(checkout / "configs/renamed.py")
    assert pack(checkout) == ""
    with tarfile.open(checkout / "out/archive.tar.gz") as archive:
        assert sorted(archive.getnames()) == [
            *(".gitignore", "configs/renamed.py", "langmerge_jax/errors.py", "launch/remote.py")
        ]


def test_a_large_checkout_is_refused_by_its_largest_file(checkout):
    init(checkout)
    with (checkout / "weights.bin").open("wb") as weights:
        weights.truncate(123_000_000)
    line = pack(checkout)
    assert line.endswith(
        "123 MB that git does not ignore, the largest weights.bin; put data and models on the "
        "share and into .gitignore"
    )


def test_what_is_no_checkout_is_refused(checkout):
    assert pack(checkout).endswith("not a git checkout; clone the repository and launch from there")
