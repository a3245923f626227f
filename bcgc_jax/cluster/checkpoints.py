"""What a master needs to go on after it was killed, kept by Orbax (which the extra `cluster` brings)."""

import logging
from pathlib import Path
from typing import Any

import jax

from bcgc_jax._extras import to_install
from bcgc_jax.coding.gradients import PyTree


class Checkpoints:
    """The last states of a training in a folder, made if need be; written whole or not at all.

    The training goes on while one is written, and what ends meanwhile is left out: a checkpoint is as old as
    it takes to write one, a tenth of a second for a small model.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            import orbax.checkpoint as ocp
        except ImportError as error:
            raise ImportError(
                f"checkpoints are kept by Orbax, which is not installed: {to_install('cluster')}"
            ) from error
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp = ocp
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()  # waits for what is being written

    def save(self, num_steps: int, state: PyTree, *, wait: bool = False) -> None:
        """Keep the state after `num_steps` iterations, unless another is being written and nobody waits."""
        if wait:
            self._manager.wait_until_finished()
        if not self._manager.is_saving_in_progress():
            self._manager.save(num_steps, args=self._ocp.args.StandardSave(state))

    def last(self, like: PyTree) -> tuple[int, PyTree] | None:
        """Iterations done and the state, shaped as `like`; None if there is no checkpoint.

        Raises ValueError where the folder holds the checkpoint of another model or optimiser.
        """
        steps = self._manager.latest_step()
        if steps is None:
            return None
        try:
            shapes = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like)
            state: Any = self._manager.restore(steps, args=self._ocp.args.StandardRestore(shapes))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self._manager.directory} holds the checkpoint of another model or optimiser: take an "
                f"empty folder, or the model it was made with ({str(error).splitlines()[0]})"
            ) from error
        return steps, state
