"""What the commands on a page of documentation are, and whether the doors know them."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence

from tests.doors import ROOT

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# Tables of a run, which tests/test_docs.py compares with its results.
_GENERATED = re.compile(r"^<!-- demo: .*?^<!-- end -->$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Block:
    """What stands between fences.

    Attributes:
      kind: the word behind the first fence; "" for none.
      text: without the indentation of the fences.
    """

    kind: str
    text: str


def blocks(name: str) -> list[Block]:
    """Returns the fenced blocks of a page that people wrote, in their order."""
    text = _GENERATED.sub("", (ROOT / name).read_text(encoding="utf-8"))
    return [
        Block(kind, re.sub(f"^{indent}", "", inside, flags=re.MULTILINE))
        for indent, kind, inside in _FENCED.findall(text)
    ]


def spans(name: str) -> list[str]:
    """Returns what a page has between backticks in its sentences, each on one line."""
    text = _FENCED.sub("", _GENERATED.sub("", (ROOT / name).read_text(encoding="utf-8")))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(scripts: Iterable[str]) -> list[str]:
    """Returns the lines of scripts, each with those that go on with it."""
    return [line for script in scripts for line in script.replace("\\\n", " ").splitlines()]


def environment() -> dict[str, str]:
    """What a command sees in a folder that stands for a checkout whose environment is active."""
    programs = pathlib.Path(sys.executable).parent
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]),
    }


def accepts(words: Sequence[str], folder: pathlib.Path = ROOT) -> None:
    """Checks that a door knows all flags of a command, and that its config is there.

    Args:
      words: of the command, `python -m <module of the door> <flag>…`.
      folder: that it is run in.
    """
    start, flags = words[:3], words[3:]
    assert start[:2] == ["python", "-m"], words
    for flag in flags:
        assert flag.startswith("--"), f"{flag!r} is no flag"
        if flag.startswith("--config="):
            # Where nothing is changed in it, a config that is not there is missed only later.
            config = flag.partition("=")[2].partition(":")[0]
            assert (folder / config).is_file(), config
    # What is no flag is refused last, when all flags are read; --help would come before that.
    result = subprocess.run(
        [sys.executable, *start[1:], *flags, "stop"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stderr.startswith("error: unknown argument 'stop'"), result.stderr
