"""Costs are added up from ledgers, and compared, as one would by hand."""

import pytest

from langmerge_jax.files import write_json
from langmerge_jax.lifecycle.costs import compare_costs, cost_of, schedule
from langmerge_jax.lifecycle.measured import read_measured, write_measured
from langmerge_jax.reporting.tables import schedule_table


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


def test_a_measurement_holds_as_long_as_its_adapters(tmp_path):
    adapters = {}
    for name in ("en", "ja"):
        adapters[name] = tmp_path / "adapters" / name
        write_json(adapters[name] / "inputs.json", {"rows": name})
    assert read_measured(tmp_path, adapters) is None
    write_measured(tmp_path, adapters, by="slurm", at_once=2, seconds=12.5)
    found = read_measured(tmp_path, adapters)
    assert (found["by"], found["at_once"], found["seconds"]) == ("slurm", 2, 12.5)
    assert read_measured(tmp_path, {"en": adapters["en"]}) is None
    write_json(adapters["ja"] / "inputs.json", {"rows": "others"})
    assert read_measured(tmp_path, adapters) is None


def test_what_was_measured_stands_beside_what_was_scheduled(tmp_path):
    costs = {
        "device": "TPU v5 lite",
        "devices": 8,
        "scheduled_seconds": {"1": 4000.0, "2": 2400.0, "3": 1600.0, "5": 1000.0},
        "alone_seconds": {"combined": 4000.0},
        "measured": {
            "by": "process",
            "at_once": 3,
            "seconds": 1712.34,
            "device": "TPU v5 lite",
            "devices": 8,
        },
    }
    write_json(tmp_path / "costs.json", costs)
    lines = schedule_table(tmp_path).text().splitlines()
    assert max(map(len, lines)) <= 80
    cells = {line[:22].rstrip(): line[22:].split() for line in lines if line}
    assert cells["adapters"] == ["4000.0", "2400.0", "1600.0", "1000.0"]
    (row,) = [line for line in lines if line.startswith("measured, by process  ")]
    place = row.index("1712.3") + len("1712.3")
    (head,) = [line for line in lines if line.startswith("languages at a time")]
    assert head[:place].endswith("3")
    assert "scheduled, not measured" in "\n".join(lines)
    assert "measured, by process: by the clock" in "\n".join(lines)


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
