"""Progress is a bar on a terminal, above which messages stand, and plain lines elsewhere."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from langmerge_jax.progress import short
from tests.doors import ROOT

CODE = """
import logging, sys, time
logging.basicConfig(level=logging.INFO, format="%(message)s")
from langmerge_jax import progress
progress.LINE_SECONDS = 0.0
with progress.Progress(sys.argv[1], 1000, "step", 940) as shown:
    for step in range(940, 1000):
        note = "loss 0.312, 12.3k tok/s, MFU 41 %, pad 7 %" if len(sys.argv) > 2 else ""
        shown.update(note=note, left=(1000 - step) * 70 if note else None)
        if step == 970:
            logging.info("a message")
        time.sleep(0.01)
"""


def screen(columns, *arguments):
    """What the code draws on a terminal, line by line, each as often as it is drawn."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-c", CODE, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=theirs)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            some = os.read(ours, 1 << 16)
        except OSError:  # So a terminal ends on Linux.
            break
        if not some:
            break
        drawn += some
    os.close(ours)
    assert process.wait() == 0
    return [line.rstrip() for line in re.split(r"[\r\n]+", drawn.decode()) if line.strip()]


@pytest.mark.parametrize(
    ("columns", "what", "name"),
    [
        (80, "train en", r"train en( \|.+\|)?"),
        (80, "train de, en, fr, ja, zh", r"train d?e?(, en?)?(, fr?)?…"),
        (120, "train de, en, fr, ja, zh", r"train de, en, fr, ja, zh \|.+\|"),
    ],
)
def test_a_bar_fits_the_terminal_with_all_that_it_says(columns, what, name):
    *bars, last = screen(columns, what, "note")
    note = r"loss 0\.312, 12\.3k tok/s, MFU 41 %, pad 7 %"
    assert re.fullmatch(rf"{what}: 60 steps in [\d.]+ s, {note}", last)
    assert bars.count("a message") == 1
    bars = [line for line in bars if line != "a message"]
    assert max(map(len, bars)) < columns
    beside = rf" \d+/1000, (1:)?\d?\d:\d\d left, {note}"
    assert len(bars) > 1
    for line in bars[1:]:  # Before the first step there is nothing to say.
        assert re.fullmatch(name + beside, line), line


def test_without_a_note_the_rate_is_shown():
    *bars, last = screen(80, "evaluate")
    assert re.fullmatch(r"evaluate \|.+\| \d+/1000, 0:\d\d left, [\d.]+ steps/s", bars[-1])
    assert re.fullmatch(r"evaluate: 60 steps in [\d.]+ s", last)


def test_plain_lines_say_the_same():
    command = [sys.executable, "-c", CODE, "train en", "note"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = result.stderr.splitlines()
    assert lines[0] == (
        "train en: 941/1000, 1:10:00 left, loss 0.312, 12.3k tok/s, MFU 41 %, pad 7 %"
    )
    assert len(lines) == 62


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0.00"),
        (0.5, "0.500"),
        (13, "13.0"),
        (458, "458"),
        (999.4, "999"),
        (999.6, "1.00k"),
        (12_345, "12.3k"),
        (3.05e9, "3.05G"),
        (989e12, "989T"),
        (2e19, "2.00e+04P"),
    ],
)
def test_a_number_in_three_digits(number, text):
    assert short(number) == text
