"""A result is kept exactly as long as what it was made from stays the same."""

import dataclasses
import json
import logging

import pytest

from langmerge_jax.data.examples import Example
from langmerge_jax.errors import InputError
from langmerge_jax.lifecycle.stages import (
    digest,
    digest_rows,
    fingerprint,
    identity,
    is_current,
    making,
)


def make(directory, inputs, text="content"):
    with making(directory, inputs) as work:
        (work / "file").write_text(text)


def test_a_result_is_current_for_its_own_inputs_alone(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    inputs = {"rows": "abc", "settings": {"rank": 2, "targets": ("q", "k")}}
    assert not is_current(tmp_path / "x", inputs)
    make(tmp_path / "x", inputs)
    assert is_current(tmp_path / "x", inputs)
    assert not is_current(tmp_path / "x", inputs | {"rows": "abd"})
    assert "made anew, for another rows" in caplog.text
    assert not is_current(tmp_path / "x", {"rows": "abc"})


def test_a_failed_making_leaves_what_was_there(tmp_path):
    make(tmp_path / "x", {"rows": 1}, "first")

    def fail():
        with making(tmp_path / "x", {"rows": 2}) as work:
            (work / "file").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "x" / "file").read_text() == "first"
    assert is_current(tmp_path / "x", {"rows": 1})


def test_the_identity_of_a_result_is_that_of_its_inputs(tmp_path):
    make(tmp_path / "x", {"rows": 1}, "one run")
    make(tmp_path / "y", {"rows": 1}, "another run")
    make(tmp_path / "z", {"rows": 2}, "one run")
    assert identity(tmp_path / "x") == identity(tmp_path / "y") == digest({"rows": 1})
    assert identity(tmp_path / "z") != identity(tmp_path / "x")


def test_what_was_put_there_by_hand_is_taken_and_known_by_its_contents(tmp_path):
    for name, text in (("x", "abc"), ("y", "abc"), ("z", "abd")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_text(text)
    (tmp_path / "y" / "README.md").write_text("What a hub puts beside it does not count.")
    assert is_current(tmp_path / "x", {"rows": 1})
    assert identity(tmp_path / "x") == identity(tmp_path / "y")
    assert identity(tmp_path / "z") != identity(tmp_path / "x")


def test_a_large_file_is_sampled_to_its_end(tmp_path):
    found = set()
    for change in (None, 0, 39 << 20):
        folder = tmp_path / str(change)
        folder.mkdir()
        content = bytearray(40 << 20)
        if change is not None:
            content[change] = 1
        (folder / "model.safetensors").write_bytes(content)
        found.add(fingerprint(folder))
    assert len(found) == 3


def test_rows_are_the_same_wherever_their_file_lies():
    one, other = (Example(f"{place}:1", "en", "text", "label") for place in ("a.jsonl", "/b.jsonl"))
    assert digest_rows([one]) == digest_rows([other])
    assert digest_rows([one]) != digest_rows([dataclasses.replace(one, target="another")])
    assert digest_rows([one]) != digest_rows([one, other])


def test_unreadable_inputs_are_named(tmp_path):
    make(tmp_path / "x", {"rows": 1})
    (tmp_path / "x" / "inputs.json").write_text("{")
    with pytest.raises(InputError, match=r"inputs\.json: not JSON"):
        is_current(tmp_path / "x", json.loads("{}"))
