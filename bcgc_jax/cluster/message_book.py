"""The master's book of an iteration's messages: what is announced, asked for, here, and
decoded.

A block at level n of a code is decoded with its (N-n)-th message, one of nested groups
with one of each group: large messages are announced, and so many are asked for. No line
here knows of processes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax.coding.codes import decoding_weights
from bcgc_jax.coding.gradients import CodingPlan, PyTree, assemble


class Request(NamedTuple):
    """A request for a worker's message of a `block`, or its sum over `subsets`."""

    worker: int
    block: int
    subsets: tuple[int, ...]


class Decoder:
    """Makes blocks of what workers send, and a gradient shaped as `params` of the
    blocks.

    `needed`, `[B]`, is how many messages of each block are enough, `last` the last task
    of each worker. Messages are read where they are, in Ray's store, in one pass, and
    by NumPy: a program of XLA for each block of each plan would stay in the master's
    memory.
    """

    def __init__(self, plan: CodingPlan, params: PyTree) -> None:
        self.plan = plan
        self._params = params
        self._dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
        self.needed = plan.rule.awaited(None)
        self.offers = offers_of(plan)
        self.last = [plan.tasks(worker)[-1] for worker in range(plan.num_workers)]
        self._encodings = [np.asarray(code.encoding) for code in plan.codes]
        # compiled, once for so many workers
        decoding_weights(self._encodings[0], np.ones(plan.num_workers, bool))

    def gradients(
        self, block: int, messages: Mapping[int, np.ndarray]
    ) -> list[np.ndarray] | None:
        """The gradients of a block by leaf, from `messages`, `[size]`; None if these
        are too few.

        Messages are by worker; of a schedule `messages[0]` is the sum over all subsets.
        """
        weights = np.ones(1)
        if self.plan.coded:
            arrived = np.isin(np.arange(self.plan.num_workers), list(messages))
            decoding = decoding_weights(self._encodings[block], arrived)
            if not decoding.decodable:
                return None
            weights = np.asarray(decoding.weights)
        scale = self.plan.scaling
        scaled = [
            (scale * weights[w], sent) for w, sent in messages.items() if weights[w]
        ]
        gradients = []
        begin = 0
        for leaf, start, stop in self.plan.blocks[block].pieces:
            gradients.append(
                _sum(scaled, begin, np.empty(stop - start, self._dtypes[leaf]))
            )
            begin += stop - start
        return gradients

    def gradient(self, parts: Sequence[Sequence[np.ndarray]]) -> PyTree:
        """The full gradient from `gradients` of all blocks."""
        return jax.device_put(assemble(self.plan.blocks, parts, self._params, np))


def _sum(
    scaled: Sequence[tuple[float, np.ndarray]], begin: int, out: np.ndarray
) -> np.ndarray:
    """Σ_w a_w m_w from `begin` on, in float64, by rows that stay in the cache."""
    (first_weight, message), *later_terms = scaled
    row = 2**16
    total, term = np.empty((2, min(row, out.size)))
    with np.errstate(all="ignore"):  # a loss may overflow: its training sees it
        for start in range(0, out.size, row):
            size = min(row, out.size - start)
            span = slice(begin + start, begin + start + size)
            total[:size] = message[span]
            for weight, values in later_terms:
                term[:size] = values[span]
                if weight != first_weight:  # plain sums are multiplied once
                    term[:size] *= weight / first_weight
                total[:size] += term[:size]
            total[:size] *= first_weight
            out[start : start + size] = total[:size]
    return out


class MessageBook:
    """One iteration: who has announced what, whom the master asked, and what has come.

    A block is made of terms, so many of which are wanted: of a schedule the gradients
    of all subsets; of a code so many workers' messages, or one of each group's. Each is
    asked for once: of a schedule as soon as all that nobody was asked for are
    announced. What is returned are requests to ask now.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._plan = decoder.plan
        self._wanted = decoder.needed.copy()
        # Who has announced what, `[B, worker, term]`; what was asked for or has come,
        # `[B, term]`.
        self._ready = np.zeros_like(decoder.offers)
        self._taken = np.zeros_like(decoder.offers[:, 0])
        self._open: set[Request] = set()
        self._asked = np.zeros(self._plan.num_workers, int)
        # A code's messages by worker; a schedule's one sum.
        self._messages: list[dict[int, np.ndarray]] = [{} for _ in self._wanted]

    def report(self, announced: Request) -> list[Request]:
        """Note that a worker has done a task."""
        self._ready[
            announced.block, announced.worker, terms_of(self._plan, announced)
        ] = True
        return self.due(announced.block)

    def take(self, request: Request, values: np.ndarray) -> bool:
        """Take what was asked for, or a message unasked; return whether it counts."""
        worker, block, _ = request
        terms = terms_of(self._plan, request)
        messages = self._messages[block]
        if request in self._open:
            self._open.remove(request)
        elif not self._plan.coded or self._taken[block, terms].any():
            return False
        if not self._wanted[block]:
            return False
        self._taken[block, terms] = True
        if self._plan.coded:
            messages[worker] = values
        elif 0 not in messages:
            messages[0] = values
        elif messages[0].flags.writeable:
            messages[0] += values
        else:  # the first message is Ray's own, and read only
            messages[0] = messages[0] + values
        return True

    def gradients(self, block: int) -> list[np.ndarray] | None:
        """The gradients of a block by leaf, None before the last of its terms."""
        coming = sum(
            len(terms_of(self._plan, request))
            for request in self._open
            if request.block == block
        )
        if self._taken[block].sum() - coming < self._wanted[block]:
            return None
        gradients = self.decoder.gradients(block, self._messages[block])
        if gradients is None:
            # random codes amplify too much once in a great while: one more helps
            self._wanted[block] += 1
            return None
        self._wanted[block] = 0
        self._messages[block] = {}
        return gradients

    def lose(self, worker: int) -> list[Request]:
        """Forget what a lost worker had and was asked for; a successor begins anew."""
        self._ready[:, worker] = False
        lost = {request for request in self._open if request.worker == worker}
        self._open -= lost
        for request in lost:
            self._taken[request.block, terms_of(self._plan, request)] = False
        return [
            request for block in range(len(self._wanted)) for request in self.due(block)
        ]

    def possible(self, coming: np.ndarray) -> np.ndarray:
        """Whether `coming`, bool `[N]`, can complete each block, bool `[B]`."""
        available = self._ready | (self.decoder.offers & coming[:, None])
        return np.sum(self._taken | available.any(axis=1), axis=1) >= self._wanted

    def due(self, block: int) -> list[Request]:
        """Requests for what nobody was asked for: few, and for workers that had few."""
        is_taken = self._taken[block]
        is_ready = self._ready[block]
        requests = []
        if not self._plan.coded and not np.all(is_taken | is_ready.any(axis=0)):
            return []
        while is_taken.sum() < self._wanted[block]:
            useful = np.sum(is_ready & ~is_taken, axis=1)
            worker = int(np.lexsort((self._asked, -useful))[0])
            if not useful[worker]:
                break
            chosen = np.flatnonzero(is_ready[worker] & ~is_taken)
            subsets = tuple(chosen.tolist())
            if self._plan.coded:
                subsets = self._plan.codes[block].subsets[worker]
            requests.append(Request(worker, block, subsets))
            is_taken[chosen] = True
            self._asked[worker] += 1
        self._open.update(requests)
        return requests


def terms_of(plan: CodingPlan, request: Request) -> list[int]:
    """A schedule's terms are subsets; a code's are workers, or their groups."""
    worker, block, subsets = request
    if not plan.coded:
        return list(subsets)
    groups = plan.groups[block] if plan.groups else ()
    for number, group in enumerate(groups):
        if worker in group:
            return [number]
    return [worker]


def offers_of(plan: CodingPlan) -> np.ndarray:
    """Which terms of each block a worker's tasks make, bool `[B, worker, term]`."""
    offers = np.zeros((len(plan.blocks), plan.num_workers, plan.num_workers), bool)
    for worker in range(plan.num_workers):
        for task in plan.tasks(worker):
            offers[task.block, worker, terms_of(plan, Request(worker, *task))] = True
    return offers
