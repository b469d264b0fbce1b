"""Several processes of one job: how they find each other, and what one of them decides for all."""

import json
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from langmerge_jax.errors import InputError

T = TypeVar("T")

AUTO = "auto"
BY_HAND = "<host>:<port>,<number of processes>,<number of this one, from 0>"


def join(how: str, timeout: int = 100) -> None:
    """Makes this process one of several that train together; before jax is used otherwise.

    Args:
      how: "" for a process alone; "auto" where jax knows the cluster (Cloud TPU, Slurm, Kubernetes,
        Open MPI); else "<host>:<port>,<number of processes>,<number of this one, from 0>", where
        host and port are those at which process 0 is to be reached.
      timeout: seconds without a sign of life after which a process counts as gone. jax then aborts
        those that are left; it takes as long to end one that failed alone, and the others with it.

    Raises:
      InputError: if it is none of these, or the others cannot be found.
    """
    if not how:
        return
    given = {} if how == AUTO else _by_hand(how)
    try:
        jax.distributed.initialize(
            **given, heartbeat_timeout_seconds=timeout, shutdown_timeout_seconds=timeout
        )
    except (ValueError, RuntimeError) as error:
        if how == AUTO:
            raise InputError(
                f"--distributed={AUTO}: jax finds no cluster that it knows ({error}); "
                f"give {BY_HAND}"
            ) from error
        raise InputError(
            f"--distributed={how}: {error}; check that process 0 runs and can be reached there"
        ) from error


def _by_hand(how: str) -> dict[str, Any]:
    found = re.fullmatch(r"(.+:\d+),(\d+),(\d+)", how)
    if not found:
        raise InputError(f"--distributed={how}: give {AUTO}, or {BY_HAND}")
    count, number = int(found[2]), int(found[3])
    if number >= count:
        raise InputError(
            f"--distributed={how}: {count} processes have the numbers below {count}, "
            f"not {number}; give {BY_HAND}"
        )
    return {
        "coordinator_address": found[1],
        "num_processes": count,
        "process_id": number,
        # What a scheduler says besides is not asked for.
        "cluster_detection_method": "deactivate",
    }


def leads() -> bool:
    """Returns whether this process decides, writes and speaks: process 0, or one alone."""
    return _alone() or jax.process_index() == 0


def agree(make: Callable[[], T]) -> T:
    """Returns in all processes what process 0 makes.

    All must call it, in the same order. Process 0 begins once all have come here, and the others go
    on once it has ended; so it may read and write what they wrote before or read after.

    Args:
      make: called in process 0 alone; returns a JSON value.

    Raises:
      InputError: in all processes, if `make` raises it.
      SystemExit: in the others, with a line and status 1, if `make` raises anything else; process 0
        raises that.
    """
    if _alone():
        return make()
    multihost_utils.sync_global_devices("agree")
    if jax.process_index() == 0:
        try:
            value = make()
        except InputError as error:
            _told({"refused": str(error)})
            raise
        except Exception as error:  # Whatever it is, the others would wait for ever.
            _told({"failed": f"{type(error).__name__}: {error}"})
            raise
        return _told({"value": value})["value"]
    told = _told(None)
    if "refused" in told:
        raise InputError(told["refused"])
    if "failed" in told:
        sys.exit(f"error: process 0 failed: {' '.join(told['failed'].split())}")
    return told["value"]


def alike(digest: str) -> bool:
    """Returns in all processes whether all of them give the same digest, of one length."""
    if _alone():
        return True
    digests = multihost_utils.process_allgather(np.frombuffer(digest.encode(), np.uint8))
    return bool((digests == digests[0]).all())


def all_agree(so: bool) -> bool:
    """Returns in all processes whether it is so in each of them."""
    return so if _alone() else bool(multihost_utils.process_allgather(np.array(so)).all())


def _alone() -> bool:
    # In this order: asked for their number, jax would start its devices.
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def _told(value: Any) -> Any:
    """Returns in all processes the JSON value that process 0 gives."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    # Arrays of one shape everywhere; only those of process 0 count.
    data = multihost_utils.broadcast_one_to_all(np.resize(text, size))
    return json.loads(data.tobytes())
