"""Training state on disk, so that a killed run goes on where it stood."""

import logging
import os
import pathlib
import re
from typing import Any

import jax

from langmerge_jax.errors import InputError

PyTree = Any

logger = logging.getLogger(__name__)


class Checkpoints:
    """The newest checkpoints of one training run, written by Orbax beside the training.

    A checkpoint is there whole or not at all: Orbax writes it aside and renames it, while the next
    steps run.

    Args:
      directory: of these checkpoints alone.
      every: steps that a killed run has to do again, at most. One is begun at half as many, when
        the one before is there: a kill may lose what is being written and the steps since.
      keep: how many stay.
    """

    def __init__(self, directory: pathlib.Path, every: int, keep: int = 2):
        # Slow to import, and only training needs it.
        from orbax.checkpoint import v1 as ocp

        self._directory, self._every = directory.absolute(), every
        self._stride = max(1, every // 2)
        self._writing = None
        self._manager = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def restore(self, state: PyTree) -> tuple[int, PyTree]:
        """Returns (steps done, state) of the newest checkpoint; without one (0, `state`).

        One that cannot be read is removed, and the one before it taken.

        Args:
          state: what a fresh run starts from; gives structure, types and shardings.

        Raises:
          InputError: if there are checkpoints, and none can be read.
        """
        leaves, tree = jax.tree.flatten(state)
        abstract = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves]
        wanted = _named(state, abstract)
        there = [checkpoint.step for checkpoint in self._manager.checkpoints]
        unreadable = []
        for step in reversed(there):
            try:
                found = self._manager.load(step, wanted)
            except (ValueError, KeyError, OSError) as error:
                logger.warning("%s: cannot be read: %s", self._directory / str(step), error)
                unreadable.append(step)
                continue
            for broken in unreadable:
                self._manager.delete(broken)
            return step, jax.tree.unflatten(tree, [found[name] for name in wanted])
        if unreadable:
            raise InputError(
                f"{self._directory}: none of its checkpoints can be read; remove "
                f"{self._directory.parent} to start this training over"
            )
        return 0, state

    def due(self, done: int) -> bool:
        """Returns whether the state after `done` steps is to be saved."""
        return done % self._stride == 0

    def save(self, done: int, state: PyTree) -> None:
        """Starts to save the state after `done` steps, once the last save is done.

        The arrays are copied before this returns, so the next step may overwrite them.

        Raises:
          OSError: if the last one could not be written. Those before it are there.
        """
        self._wait()
        self._writing = self._manager.save_async(
            done, _named(state, jax.tree.leaves(state)), force=True
        )
        if self._every == 1:
            self._wait()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except ValueError as error:  # What the system refused comes as a text.
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if not code:
                raise
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(self._directory)) from error

    def close(self) -> None:
        """Waits for what is being written."""
        self._wait()
        self._manager.close()


def _named(state: PyTree, leaves: list) -> dict[str, Any]:
    """Leaves by path: a checkpoint that can be read without the classes that wrote it."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    return dict(zip(names, leaves, strict=True))
