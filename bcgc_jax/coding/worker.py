"""Compute the messages of one worker in a coded gradient, block after block."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.coding.codes import message, row_of
from bcgc_jax.coding.gradients import CodingPlan, Task, num_samples
from bcgc_jax.coding.losses import Loss, PyTree, keys_of
from bcgc_jax.coding.stages import Pass, Stages, stages

# A subset and a range of its samples, with begin and end as fractions.
_Part = tuple[int, tuple[float, float]]


class _Passing(NamedTuple):
    """An unfinished backward pass of a part, and the weight of its gradient."""

    stages: Stages
    progress: Pass
    weight: float


class BlockWorker:
    """Compute the messages of one worker.

    A message consists of the coordinates of a coded block. If the block is the first
    one on its samples, the coded loss follows the coordinates.

    Args:
      loss: Function (params, batch), or (params, batch, key), that returns the loss.
      plan: Plan of all workers.
      index: Number of the worker.
      subsets: Data subsets in `plan.held(index)`, by number: pytrees of arrays
        `[m, …]`.
      weights: Weight of each subset's loss, `[N]`.
      seed: Seed of the loss's PRNG keys.
    """

    def __init__(
        self,
        loss: Loss,
        plan: CodingPlan,
        index: int,
        subsets: Mapping[int, PyTree],
        weights: np.ndarray,
        seed: int = 0,
    ) -> None:
        self.plan = plan
        self.tasks = plan.tasks(index)
        self._loss = loss
        self._subsets = jax.device_put(dict(subsets))
        self._weights = weights
        self._keys = keys_of(loss, jax.random.key(seed))
        self._rows = [row_of(code, index) for code in plan.codes]
        self._later = _later(plan, self.tasks)
        # Programs by the part of the samples and their shapes.
        self._stages: dict[Any, Stages] = {}

    def messages(
        self,
        params: PyTree,
        step: int = 0,
        goes_on: Callable[[], bool] = lambda: True,
        wait: Callable[[int, float], None] = lambda block, share: None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Compute the blocks in the order of the levels, and yield (block, message).

        Args:
          params: Pytree of the parameters.
          step: Number of the step, from which the keys of the loss are derived.
          goes_on: Function that is called before each pass over a subset. If it returns
            False, no further block is computed.
          wait: Function that is called after each pass with the number of the block and
            the completed fraction of its passes.
        """
        params = jax.device_put(params)
        leaves = jax.tree.leaves(params)
        shapes = tuple(np.shape(leaf) for leaf in leaves)
        dtypes = tuple(jnp.result_type(leaf) for leaf in leaves)
        passes: dict[_Part, _Passing | None] = {}
        for number, (block, subsets) in enumerate(self.tasks):
            share = self.plan.blocks[block].share
            weights = np.zeros(len(subsets))
            gradients: list[Any] = [None] * len(subsets)
            for k, subset in enumerate(subsets):
                if not goes_on():
                    return
                if (subset, share) not in passes:
                    begun = self._begin(subset, share, params, step)
                    passes[subset, share] = begun
                passing = passes[subset, share]
                if passing is not None:
                    gradients[k], progress = passing.stages.gradients(
                        passing.progress, block, self._later[number][subset]
                    )
                    jax.block_until_ready(gradients[k])
                    passes[subset, share] = passing._replace(progress=progress)
                    weights[k] = passing.weight
                wait(block, (k + 1) / len(subsets))
            row = self._rows[block]
            places = places_of(self.plan, block, shapes, dtypes)
            wide = self.plan.codes[block].wide
            pieces = encoded(places, wide, row, weights, gradients)
            # A concatenation in XLA would test for each number which piece has it.
            yield block, np.concatenate([np.asarray(piece) for piece in pieces])

    def _begin(
        self, subset: int, share: tuple[float, float], params: PyTree, step: int
    ) -> _Passing | None:
        """Begin the backward pass of a part. Return None if it has no samples."""
        data = self._subsets[subset]
        chosen, portion = self.plan.samples_of(share, num_samples(data))
        if not portion:
            return None
        batch = jax.tree.map(lambda x: x[chosen], data)
        key = self._keys(step, subset, chosen.start)
        cut = self._stages_of(share, params, batch, *key)
        weight = portion * float(self._weights[subset])
        return _Passing(cut, cut.begin(params, batch, *key), weight)

    def _stages_of(
        self, share: tuple[float, float], params: PyTree, batch: PyTree, *key: Array
    ) -> Stages:
        """Return the programs for samples of these shapes, compiled once."""
        shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch)]
        name = (share, *shapes)
        if name not in self._stages:
            loss = len(jax.tree.leaves(params))
            # Blocks on other samples have no leaves in this pass.
            blocks = [
                [piece.leaf for piece in block.pieces if block.share == share]
                for block in self.plan.blocks
            ]
            blocks[first_with(self.plan, share)].append(loss)
            self._stages[name] = stages(self._loss, params, batch, blocks, *key)
        return self._stages[name]


def _later(plan: CodingPlan, tasks: Sequence[Task]) -> list[dict[int, tuple[int, ...]]]:
    """Return the later blocks on the same samples, for each task and subset."""
    backwards: list[dict[int, tuple[int, ...]]] = []
    blocks: dict[_Part, tuple[int, ...]] = {}
    for block, subsets in reversed(tasks):
        share = plan.blocks[block].share
        later = {subset: blocks.get((subset, share), ()) for subset in subsets}
        blocks |= {(subset, share): (block, *later[subset]) for subset in subsets}
        backwards.append(later)
    return backwards[::-1]


def first_with(plan: CodingPlan, share: tuple[float, float]) -> int:
    """Return the first block on some samples; its message contains the loss, too."""
    return next(b for b, block in enumerate(plan.blocks) if block.share == share)


class Place(NamedTuple):
    """Entries `start` … `stop` - 1 of a raveled array that a backward pass returns."""

    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: Any


def places_of(
    plan: CodingPlan,
    block: int,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[Any],
) -> tuple[Place, ...]:
    """Return the part of each array that belongs to a block's message."""
    places = [
        Place(start, stop, shapes[leaf], dtypes[leaf])
        for leaf, start, stop in plan.blocks[block].pieces
    ]
    if block == first_with(plan, plan.blocks[block].share):
        places.append(Place(0, 1, (), np.dtype("float32")))
    return tuple(places)


@functools.partial(jax.jit, static_argnums=(0, 1))
def encoded(
    places: tuple[Place, ...],
    wide: bool,
    row: Array,
    weights: Array,
    gradients: Sequence[Any],
) -> list[Array]:
    """Encode the gradients of subsets as the pieces of a message; None is a zero."""
    sent = []
    for k, (start, stop, shape, dtype) in enumerate(places):
        zero = jnp.zeros(shape, dtype)
        arrays = [zero if gradient is None else gradient[k] for gradient in gradients]
        parts = [
            weight.astype(array.dtype) * array.ravel()[start:stop]
            for weight, array in zip(weights, arrays, strict=True)
        ]
        sent.append(message(row, parts, wide))
    return sent
