"""The master's arithmetic: a block of the gradient from its messages, and the gradient from its blocks."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.coding.codes import decoding_weights
from bcgc_jax.coding.gradients import Block, CodingPlan, PyTree, assemble_gradient, decode_block
from bcgc_jax.coding.scheduled import SchedulePlan


class Decoder:
    """Decodes what the workers of `plan` send, for parameters like `params`; compiled when it is made.

    `needed`, `[B]`, is how many messages of each block are enough.
    """

    def __init__(self, plan: CodingPlan, params: PyTree) -> None:
        self.plan = plan
        self.needed = plan.num_workers - np.array([block.level for block in plan.blocks])
        self._dtypes = tuple(jnp.result_type(leaf) for leaf in jax.tree.leaves(params))
        self._encodings = [np.asarray(code.encoding) for code in plan.codes]
        everyone = np.ones(plan.num_workers, bool)
        parts = [self.part(b, everyone, self.no_messages(b)) for b in range(len(plan.blocks))]
        jax.block_until_ready(gradient_of(plan.blocks, parts, params))

    def no_messages(self, block: int) -> np.ndarray:
        """Room for the messages of a block, `[N, size]`."""
        wide = self.plan.codes[block].wide
        dtype = np.float64 if wide else np.result_type(np.float32, *self._dtypes)
        return np.zeros((self.plan.num_workers, self.plan.blocks[block].size), dtype)

    def part(self, block: int, arrived: np.ndarray, messages: np.ndarray) -> list[Array] | None:
        """The pieces of a block from `messages`, `[N, size]`, that `arrived`; None if they are too few."""
        with jax.enable_x64(True):  # else messages of float64 would be cut on their way into `jit`
            decodable, pieces = _part(
                self._encodings[block],
                arrived,
                messages,
                block=self.plan.blocks[block],
                scaling=self.plan.scaling,
                dtypes=self._dtypes,
            )
        return pieces if decodable else None


class Divider:
    """The pieces of a schedule's blocks from sums over all subsets; compiled when it is made."""

    def __init__(self, plan: SchedulePlan, params: PyTree) -> None:
        self.plan = plan
        self._dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
        parts = [self.part(b, np.zeros(block.size, np.float32)) for b, block in enumerate(plan.blocks)]
        jax.block_until_ready(gradient_of(plan.blocks, parts, params))

    def part(self, block: int, total: np.ndarray) -> list[np.ndarray]:
        """The pieces of a block from the sum of its gradients of all subsets, `[size]`."""
        pieces = self.plan.blocks[block].pieces
        ends = np.cumsum([piece.stop - piece.start for piece in pieces])[:-1]
        rows = np.split(total * total.dtype.type(self.plan.scaling), ends.tolist())
        return [row.astype(self._dtypes[piece.leaf]) for piece, row in zip(pieces, rows, strict=True)]


# Plans of the same blocks share these programs, whatever their codes.
@functools.partial(jax.jit, static_argnames=("block", "scaling", "dtypes"))
def _part(
    encoding: Array, arrived: Array, messages: Array, *, block: Block, scaling: float, dtypes: Sequence[Any]
) -> tuple[Array, list[Array]]:
    weights, decodable = decoding_weights(encoding, arrived)
    ends = np.cumsum([piece.stop - piece.start for piece in block.pieces])[:-1]
    with jax.enable_x64(True):
        pieces = [list(rows) for rows in jnp.split(messages, ends.tolist(), axis=1)]
    return decodable, decode_block(block, scaling, weights, pieces, dtypes)


# (blocks, pieces of each, parameters) to the full gradient, shaped as the parameters.
gradient_of = jax.jit(assemble_gradient, static_argnums=0)
