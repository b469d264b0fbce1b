"""Training state on disk, so that a killed run goes on where it stood."""

import pathlib
from typing import Any

import jax

PyTree = Any


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

        Args:
          state: what a fresh run starts from; gives structure, types and shardings.
        """
        latest = self._manager.latest
        if latest is None:
            return 0, state
        leaves, tree = jax.tree.flatten(state)
        abstract = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves]
        wanted = _named(state, abstract)
        found = self._manager.load(latest.step, wanted)
        return latest.step, jax.tree.unflatten(tree, [found[name] for name in wanted])

    def due(self, done: int) -> bool:
        """Returns whether the state after `done` steps is to be saved."""
        return done % self._stride == 0

    def save(self, done: int, state: PyTree) -> None:
        """Starts to save the state after `done` steps, once the last save is done.

        The arrays are copied before this returns, so the next step may overwrite them.
        """
        self._wait()
        self._writing = self._manager.save_async(
            done, _named(state, jax.tree.leaves(state)), force=True
        )
        if self._every == 1:
            self._wait()

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


def _named(state: PyTree, leaves: list) -> dict[str, Any]:
    """Leaves by path: a checkpoint that can be read without the classes that wrote it."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    return dict(zip(names, leaves, strict=True))
