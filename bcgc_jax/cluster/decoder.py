"""The master's arithmetic: a block of the gradient from its messages, and the gradient from its blocks.

Messages are read where they are, in Ray's store, in one pass that writes the gradients of the leaves.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.coding.codes import REPEATED, decoding_weights
from bcgc_jax.coding.gradients import Block, CodingPlan, PyTree, assemble_gradient, decode_block


class Decoder:
    """Makes blocks of what the workers of `plan` send, for parameters like `params`; compiled when made.

    Of a code `needed`, `[B]`, is how many messages of each block are enough.
    """

    def __init__(self, plan: CodingPlan, params: PyTree) -> None:
        leaves = jax.tree.leaves(params)
        self.plan, self._shapes = plan, tuple(np.shape(leaf) for leaf in leaves)
        self._dtypes = tuple(jnp.result_type(leaf) for leaf in leaves)
        codes = plan.codes
        self.needed = plan.rule.awaited(None)
        self._encodings = [np.asarray(code.encoding) for code in codes]
        # Messages that count: where the workers of a group send the same, one of each group.
        self._used = [
            len(set(code.subsets)) if code.construction in REPEATED else needed
            for code, needed in zip(codes, self.needed.tolist(), strict=True)
        ]
        narrow = np.result_type(np.float32, *self._dtypes)  # of messages that no code amplifies
        parts: list[Any] = []
        for block, code in enumerate(codes):
            zero = np.zeros(plan.blocks[block].size, float if code.wide else narrow)
            if plan.coded:
                parts.append(self.part(block, dict.fromkeys(range(plan.num_workers), zero)))
            else:
                parts.append(self.sum(block, np.ones(1), [zero]))
        jax.block_until_ready(assemble_gradient(plan.blocks, parts, params))

    def part(self, block: int, messages: Mapping[int, np.ndarray]) -> list[Array] | None:
        """The pieces of a block from the `messages`, `[size]`, of some workers; None if they are too few."""
        arrived = np.isin(np.arange(self.plan.num_workers), list(messages))
        found = decoding_weights(self._encodings[block], arrived)
        if not found.decodable:
            return None
        weights = np.asarray(found.weights)
        chosen = sorted(messages, key=lambda worker: weights[worker] == 0)[: self._used[block]]
        return self.sum(block, weights[chosen], [messages[worker] for worker in chosen])

    def sum(self, block: int, weights: np.ndarray, messages: Sequence[np.ndarray]) -> list[Array]:
        """The pieces of a block from weighted messages, of a schedule sums over subsets."""
        with jax.enable_x64(True):  # else messages of float64 would be cut on their way into `jit`
            # Memory at a multiple of 64 bytes, as that of Ray's store, is taken as it is.
            return _part(
                weights,
                list(messages),
                block=self.plan.blocks[block],
                scaling=self.plan.scaling,
                shapes=self._shapes,
                dtypes=self._dtypes,
            )


# Plans of the same blocks share these programs, whatever their codes.
@functools.partial(jax.jit, static_argnames=("block", "scaling", "shapes", "dtypes"))
def _part(
    weights: Array,
    messages: Sequence[Array],
    *,
    block: Block,
    scaling: float,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[Any],
) -> list[Array]:
    ends = np.cumsum([piece.stop - piece.start for piece in block.pieces])
    with jax.enable_x64(True):
        begins = [0, *ends[:-1]]
        pieces = [[m[a:b] for m in messages] for a, b in zip(begins, ends, strict=True)]
    found = decode_block(block, scaling, weights, pieces, dtypes)
    # A leaf that is whole has its shape from here on: nothing is left to be done with it.
    whole = [
        part.size == math.prod(shapes[piece.leaf]) for piece, part in zip(block.pieces, found, strict=True)
    ]
    return [
        part.reshape(shapes[piece.leaf]) if all_of_it else part
        for piece, part, all_of_it in zip(block.pieces, found, whole, strict=True)
    ]
