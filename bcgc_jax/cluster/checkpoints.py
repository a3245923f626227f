"""What a master needs to go on after it was killed, kept by Orbax (which the extra `cluster` brings)."""

import contextlib
import json
import logging
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bcgc_jax._extras import to_install
from bcgc_jax.cluster.engine import reason_of
from bcgc_jax.coding.gradients import PyTree

# Beside the checkpoints: of which training they are.
_DESCRIPTION = "training.json"


class Checkpoints:
    """The last states of a training in a folder, made if need be; written whole or not at all.

    The training goes on while one is written, and what ends meanwhile is left out: a checkpoint is as old as
    it takes to write one, a tenth of a second for a small model. Where one cannot be written there is a
    warning, and the next is tried. Half-written ones of a master that was killed are removed: a folder is for
    one master at a time.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            import orbax.checkpoint as ocp
        except ImportError as error:
            raise ImportError(
                f"checkpoints are kept by Orbax, which is not installed: {to_install('cluster')}"
            ) from error
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails is told here, in one line
        if Path(folder).exists() and not Path(folder).is_dir():
            raise NotADirectoryError(
                f"checkpoints are kept in a folder, and {folder} is a file: name another"
            )
        self._ocp = ocp
        # Not Orbax's own threads: after a write that failed they wait for minutes.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(
            Path(folder).absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
        )
        self._folder = Path(self._manager.directory)
        self._writer = ThreadPoolExecutor(1)
        self._writing: tuple[int, Future[None]] | None = None
        self._failed = self._noted = False
        self._made_with: Mapping[str, Any] = {}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._settle()
        self._writer.shutdown()
        self._manager.close()

    def save(self, num_steps: int, state: PyTree, *, wait: bool = False) -> None:
        """Keep the state after `num_steps` iterations, unless another is being written and nobody waits."""
        if wait or (self._writing is not None and self._writing[1].done()):
            self._settle()
        if self._writing is None:
            self._writing = num_steps, self._writer.submit(self._write, num_steps, state)

    def last(self, like: PyTree, made_with: Mapping[str, Any] | None = None) -> tuple[int, PyTree] | None:
        """Iterations done and the state, shaped as `like`; None if there is no checkpoint.

        `made_with` is kept with those written from now on. A damaged one is removed, with a warning, if there
        is one before it.

        Raises ValueError where the folder holds checkpoints of another model or optimiser, made with
        something else, or none that can be read.
        """
        self._settle()
        self._made_with = made_with or {}
        found = sorted(self._manager.all_steps(), reverse=True)
        if found:
            self._check_made_with(like)
        errors = []
        for steps in found:
            try:
                shapes = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like)
                state: Any = self._manager.restore(steps, args=self._ocp.args.StandardRestore(shapes))
            except Exception as error:  # a file that is cut is told by errors of all kinds
                errors.append(error)
                continue
            for damaged, why in zip(found, errors, strict=False):
                warnings.warn(
                    f"the checkpoint of iteration {damaged} in {self._folder} is damaged "
                    f"({reason_of(why)}): that of iteration {steps} is taken",
                    stacklevel=3,
                )
                shutil.rmtree(self._folder / str(damaged), ignore_errors=True)
            if errors:
                self._manager.reload()
            return steps, state
        if errors:
            raise ValueError(
                f"no checkpoint in {self._folder} can be read: they are damaged, or of another model or "
                f"optimiser; take an empty folder, or a copy of this one ({reason_of(errors[0])})"
            ) from errors[0]
        return None

    def _check_made_with(self, like: PyTree) -> None:
        with contextlib.suppress(FileNotFoundError):  # of an earlier version
            try:
                kept = {**json.loads((self._folder / _DESCRIPTION).read_text())}
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{self._folder / _DESCRIPTION} is damaged ({reason_of(error)}): whether the checkpoints "
                    "beside it are of this training cannot be told. Remove it if you know that they are"
                ) from error
            given = json.loads(json.dumps({_STATE: _shapes(like), **self._made_with}))
            other = [name for name in kept if name in given and not _alike(kept[name], given[name])]
            if other:
                raise ValueError(
                    f"{self._folder} holds the checkpoint of another training: it was made with another "
                    f"{', '.join(other)}. Take an empty folder, or what it was made with"
                )

    def _write(self, num_steps: int, state: PyTree) -> None:
        try:
            if not self._noted:
                path = self._folder / _DESCRIPTION
                part = path.with_suffix(".part")
                part.write_text(json.dumps({_STATE: _shapes(state), **self._made_with}))
                os.replace(part, path)
                self._noted = True
            self._manager.save(num_steps, args=self._ocp.args.StandardSave(state))
        except BaseException:
            for half in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half, ignore_errors=True)
            raise

    def _settle(self) -> None:
        """Wait for what is being written; warn once where it fails, until one succeeds."""
        if self._writing is None:
            return
        (num_steps, future), self._writing = self._writing, None
        error = future.exception()
        if isinstance(error, Exception) and not self._failed:
            warnings.warn(
                f"the checkpoint of iteration {num_steps} could not be written to {self._folder} "
                f"({reason_of(error).partition(' [tensorstore_spec')[0]}): the training goes on, and tries "
                "again after each iteration",
                stacklevel=3,
            )
        self._failed = error is not None


_STATE = "model or optimiser"


def made_with(
    key: Array,
    loss: Callable[..., Any],
    data: PyTree,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    **settings: Any,
) -> dict[str, Any]:
    """What a training that goes on must share with the one before, as far as it can be compared.

    The key; the loss, and data that is a function, by its name alone, whatever it does; each byte of other
    data; what the optimiser makes of two gradients of twos at parameters of ones; and the `settings`, as they
    are printed.
    """
    ones = jax.tree.map(jnp.ones_like, params)
    twos, state, moved = jax.tree.map(lambda x: 2 * x, ones), optimizer.init(ones), []
    for _ in range(2):  # momentum, and schedules that begin at 0, show in the second
        updates, state = optimizer.update(twos, state, ones)
        moved += [float(np.linalg.norm(np.ravel(np.asarray(u, float)))) for u in jax.tree.leaves(updates)]
    return {
        "key": np.asarray(jax.random.key_data(key)).ravel().tolist(),
        "loss (by its name)": _name_of(loss),
        "data": _name_of(data) if callable(data) else _checksum(data),
        "learning rate or optimiser": moved,
        **{name: str(value) for name, value in settings.items()},
    }


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def _checksum(tree: PyTree) -> list[Any]:
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [[str(leaf.dtype), list(leaf.shape), zlib.crc32(leaf.view(np.uint8).data)] for leaf in leaves]


def _shapes(state: PyTree) -> dict[str, str]:
    """The dtype and shape of each leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(np.shape(leaf))}" for path, leaf in leaves
    }


def _alike(kept: Any, given: Any) -> bool:
    """Machines round the floats of an optimiser differently."""
    if kept == given or not isinstance(kept, list) or not isinstance(given, list) or len(kept) != len(given):
        return bool(kept == given)
    floats = all(isinstance(value, float) for value in kept + given)
    return floats and np.allclose(kept, given, rtol=1e-4, atol=0)
