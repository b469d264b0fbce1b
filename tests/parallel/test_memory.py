"""What a call takes is told wherever the peak of the process stood before."""

import threading
import time
import types

import pytest

from langmerge_jax.parallel.memory import peak_beside


class Counting:
    """A device that counts, as jax's on GPUs do, what is in use and the most that ever was."""

    platform = "gpu"

    def __init__(self, in_use: int, peak: int):
        self._lock, self._in_use, self._peak = threading.Lock(), in_use, peak

    def take(self, more: int) -> None:
        with self._lock:
            self._in_use += more
            self._peak = max(self._peak, self._in_use)

    def memory_stats(self) -> dict[str, int]:
        with self._lock:
            return {"bytes_in_use": self._in_use, "peak_bytes_in_use": self._peak}


@pytest.mark.parametrize("before", [100, 10_000])
def test_the_peak_of_a_call_is_its_own(before):
    device = Counting(100, before)

    def call():
        for more in (40, 300):
            device.take(more)
            # Long against the milliseconds between two looks.
            time.sleep(0.2)
            device.take(-more)

    assert peak_beside(types.SimpleNamespace(local_devices=[device]), call) == 300


def test_a_peak_between_two_looks_counts_where_it_is_the_highest():
    device = Counting(100, 150)

    def call():
        device.take(70)
        device.take(-70)

    assert peak_beside(types.SimpleNamespace(local_devices=[device]), call) == 70
