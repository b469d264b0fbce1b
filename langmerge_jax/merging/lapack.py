"""LAPACK on the host's CPU, kept to one thread while a merge's small factorizations run."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import threadpoolctl


def one_thread() -> contextlib.AbstractContextManager[None]:
    """Keeps BLAS and LAPACK, where jax computes with them, to one thread.

    The threads of OpenBLAS wait for each other thousands of times in one small factorization; where
    another process holds a core, that took 1.5 s for a matrix of 320 rows, and 0.06 s on one
    thread. Large products are XLA's own and keep all cores. Results must be ready before the
    context ends, as jax computes them later otherwise.
    """
    if jax.default_backend() != "cpu":
        return contextlib.nullcontext()
    return _controller().limit(limits=1, user_api="blas")


@functools.cache
def _controller() -> threadpoolctl.ThreadpoolController:
    # jax loads LAPACK, which is scipy's, when it is first used.
    jnp.linalg.eigh(jnp.eye(2)).eigenvalues.block_until_ready()
    return threadpoolctl.ThreadpoolController()
