"""What a master that was killed needs to go on: the last two states, as .npz."""

import json
import os
import warnings
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bcgc_jax.cluster.engine import reason_of
from bcgc_jax.coding.gradients import PyTree


class Checkpoints:
    """The last states of a training in a folder, made if need be; written whole or not
    at all.

    The training goes on while one is written, and what ends meanwhile is left out: a
    checkpoint is as old as it takes to write one. Where one cannot be written there is
    a warning, and the next is tried. Half-written ones of a master that was killed are
    removed: a folder is for one master at a time.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        for half in self._folder.glob("steps-*.part"):
            half.unlink()
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._failed = False
        self._made_with: Mapping[str, Any] = {}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()

    def save(self, num_steps: int, state: PyTree, *, wait: bool = False) -> None:
        """Keep a state, that after `num_steps`; while busy wait, or skip it."""
        if wait or self._writing is None or self._writing.done():
            self._writing = self._writer.submit(self._write, num_steps, state)

    def last(
        self,
        like: PyTree,
        made_with: Mapping[str, Any] | None = None,
        most: int | None = None,
    ) -> tuple[int, PyTree] | None:
        """Iterations done and the state, shaped as `like`; None if there is no
        checkpoint.

        `made_with` is kept with those written from now on. A damaged one is removed,
        with a warning, if there is one before it.

        Raises ValueError where the checkpoint is of another model or optimiser, made
        with something else, or of more iterations than `most`, and where none of those
        in the folder can be read.
        """
        if self._writing is not None:
            self._writing.result()
        self._made_with = made_with or {}
        damaged: dict[int, Exception] = {}
        for steps in self._kept():
            try:
                with self._path(steps).open("rb") as raw, np.load(raw) as file:
                    kept = {**json.loads(file["made_with"].item())}
                    arrays = [file[str(k)] for k in range(len(file.files) - 1)]
            except Exception as error:  # a cut file raises errors of all kinds
                damaged[steps] = error
                continue
            description = self._described(like)
            if differences := [
                name
                for name in kept
                if name in description and kept[name] != description[name]
            ]:
                raise ValueError(
                    f"{self._folder} holds the checkpoint of another training: it was "
                    f"made with another {', '.join(differences)}. Take an empty "
                    "folder, or what it was made with"
                )
            if most is not None and steps > most:
                raise ValueError(
                    f"the checkpoint is of {steps} iterations, more than the {most} "
                    "asked for: ask for as many at least, or take an empty folder"
                )
            for number, why in damaged.items():
                warnings.warn(
                    f"the checkpoint of iteration {number} in {self._folder} is "
                    f"damaged ({reason_of(why)}): that of iteration {steps} is taken",
                    stacklevel=3,
                )
                self._path(number).unlink()
            leaves, tree = jax.tree.flatten(like)
            return steps, jax.tree.unflatten(tree, map(_restored, arrays, leaves))
        for why in damaged.values():
            raise ValueError(
                f"no checkpoint in {self._folder} can be read, they are damaged: take "
                f"an empty folder, or a copy of this one ({reason_of(why)})"
            ) from why
        return None

    def _path(self, num_steps: int) -> Path:
        return self._folder / f"steps-{num_steps}.npz"

    def _kept(self) -> list[int]:
        """The iterations of the checkpoints, the last one first."""
        files = self._folder.glob("steps-*.npz")
        return sorted(
            (int(path.stem.removeprefix("steps-")) for path in files), reverse=True
        )

    def _described(self, state: PyTree) -> dict[str, Any]:
        """What made a checkpoint: leaves' paths, dtypes, shapes, and all else."""
        shapes = []
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            described = f"{jnp.result_type(leaf)}{list(np.shape(leaf))}"
            shapes.append([jax.tree_util.keystr(path), described])
        return {"model or optimiser": shapes, **self._made_with}

    def _write(self, num_steps: int, state: PyTree) -> None:
        path = self._path(num_steps)
        part = path.with_suffix(".part")
        leaves = [
            jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(state)
        ]
        arrays: dict[str, Any] = {
            str(k): np.asarray(leaf) for k, leaf in enumerate(leaves)
        }
        try:
            with part.open("wb") as file:
                np.savez(
                    file,
                    made_with=np.array(json.dumps(self._described(state))),
                    **arrays,
                )
                os.fsync(file.fileno())
            part.replace(path)
            for steps in self._kept()[2:]:
                self._path(steps).unlink()
            self._failed = False
        except Exception as error:
            if not self._failed:  # told once, until one succeeds
                warnings.warn(
                    f"the checkpoint of iteration {num_steps} could not be written to "
                    f"{self._folder} ({reason_of(error)}): the training goes on, and "
                    "tries again after each iteration",
                    stacklevel=2,
                )
            self._failed = True
        finally:
            part.unlink(missing_ok=True)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _restored(array: np.ndarray, like: Any) -> Array:
    if _is_key(like):
        return jax.random.wrap_key_data(
            jnp.asarray(array), impl=jax.random.key_impl(like)
        )
    # NumPy's files do not know bfloat16.
    return jnp.asarray(array.view(jnp.result_type(like)))


def made_with(
    key: Array,
    loss: Any,
    data: PyTree,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    **settings: Any,
) -> dict[str, Any]:
    """What a training that goes on must share with the one before, as far as it can be
    compared.

    The key; the loss, and data that is a function, by its name alone, whatever it does;
    each byte of other data; what the optimiser makes of two gradients of twos at
    parameters of ones, to four digits (machines round differently); and the `settings`,
    as they are printed.
    """
    ones = jax.tree.map(jnp.ones_like, params)
    twos = jax.tree.map(lambda x: 2 * x, ones)
    state = optimizer.init(ones)
    moved = []
    for _ in range(2):  # momentum, and schedules that begin at 0, show in the second
        updates, state = optimizer.update(twos, state, ones)
        norms = (
            np.linalg.norm(np.ravel(np.asarray(u, float)))
            for u in jax.tree.leaves(updates)
        )
        moved += [f"{norm:.4g}" for norm in norms]
    return {
        "key": np.asarray(jax.random.key_data(key)).ravel().tolist(),
        "loss (by its name)": _name_of(loss),
        "data": _described_data(data),
        "learning rate or optimiser": moved,
        **{name: str(value) for name, value in settings.items()},
    }


def _described_data(data: PyTree) -> Any:
    """The name of a function; the dtype, shape and checksum of each array."""
    if callable(data):
        return _name_of(data)
    arrays = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(data)]
    return [
        [str(x.dtype), [*x.shape], zlib.crc32(x.view(np.uint8).data)] for x in arrays
    ]


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
