"""LAPACK on the host's CPU, kept to one thread while a merge's small factorizations run."""

import contextlib
import functools
import importlib.util
import logging
import typing

import jax
import jax.numpy as jnp

if typing.TYPE_CHECKING:
    import threadpoolctl

logger = logging.getLogger(__name__)


def one_thread() -> contextlib.AbstractContextManager[None]:
    """Keeps BLAS and LAPACK, where jax computes with them, to one thread.

    The threads of OpenBLAS wait for each other thousands of times in one small factorization; where
    another process holds a core, that took 1.5 s for a matrix of 320 rows, and 0.06 s on one
    thread. Large products are XLA's own and keep all cores. Results must be ready before the
    context ends, as jax computes them later otherwise.
    """
    controller = _controller() if jax.default_backend() == "cpu" else None
    return controller.limit(limits=1, user_api="blas") if controller else contextlib.nullcontext()


@functools.cache
def _controller() -> "threadpoolctl.ThreadpoolController | None":
    # An image for GPUs may come without: there it has nothing to do.
    if importlib.util.find_spec("threadpoolctl") is None:
        logger.warning(
            "threadpoolctl is not installed: LAPACK takes all threads, which is slow where other "
            "processes hold cores; pip install threadpoolctl"
        )
        return None
    import threadpoolctl

    # jax loads LAPACK, which is scipy's, when it is first used.
    jnp.linalg.eigh(jnp.eye(2)).eigenvalues.block_until_ready()
    return threadpoolctl.ThreadpoolController()
