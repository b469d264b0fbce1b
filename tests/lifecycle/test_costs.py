"""Costs are added up from ledgers, and compared, as one would by hand."""

import pytest

from langmerge_jax.files import write_json
from langmerge_jax.lifecycle.costs import compare_costs, cost_of, schedule


def test_schedule_gives_the_longest_job_the_next_free_device():
    assert schedule([3, 1, 2, 4], 1) == 10
    # 4 and 3 start; 2 follows 3, 1 follows 4.
    assert schedule([3, 1, 2, 4], 2) == 5
    assert schedule([3, 1, 2, 4], 5) == 4


@pytest.fixture
def workdir(tmp_path):
    ledgers = {
        "en+de": {"en": 300, "de": 100},
        "de": {"de": 150},
    }
    for name, tokens in ledgers.items():
        ledger = {
            "device_seconds": 8.0,
            "step_seconds": 4.0,
            "slots": 1000,
            "tokens": tokens,
            "device": "cpu",
            "devices": 2,
        }
        write_json(tmp_path / "training" / name / "ledger.json", ledger)
    # German was trained with English first, and then again.
    for name, folder in (("en", "en+de"), ("de", "de")):
        write_json(tmp_path / "adapters" / name / "training.json", {"folder": folder})
    return tmp_path


def test_an_adapter_bears_its_share_of_a_training_of_several(workdir):
    paths = [workdir / "adapters" / name for name in ("en", "de")]
    assert cost_of(workdir, paths[:1]) == {
        "device_seconds": 6.0,
        "step_seconds": 3.0,
        "slots": 750,
        "tokens": 300,
        "device": "cpu",
        "devices": 2,
    }
    both = cost_of(workdir, paths)
    assert (both["device_seconds"], both["tokens"], both["slots"]) == (14.0, 450, 1750)
    assert cost_of(workdir, [workdir / "adapters" / "fr"]) is None


def test_savings_by_hand():
    ours = {"device_seconds": 900.0, "tokens": 300, "slots": 400}
    reference = {"device_seconds": 3600.0, "tokens": 1500, "slots": 2000}
    assert compare_costs("update en", ours, reference, price=2.0) == {
        "what": "update en",
        "measured_saving": 0.75,
        "predicted_saving": 0.8,
        "padded_saving": 0.8,
        "device_seconds": 900.0,
        "tokens": 300,
        "dollars": 0.5,
        "slots": 400,
        "combined_device_seconds": 3600.0,
        "combined_tokens": 1500,
        "combined_dollars": 2.0,
        "combined_slots": 2000,
    }
