"""A worker process in work sharing: it computes the chunks that it is given, and keeps
one sum.

At most it holds two vectors: a sum and the last gradient, or a sum that is asked for
and a gradient. What the master decides of the gradient comes with whatever it gives
next. No line here knows of Ray.
"""

import functools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.cluster.worker import NEVER, Duty, added, drawn, noted
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import Loss, PyTree, num_samples
from bcgc_jax.coding.losses import keys_of
from bcgc_jax.coding.pace import Pace
from bcgc_jax.handout.client import ask
from bcgc_jax.handout.messages import Answer, Begin, Done, Join
from bcgc_jax.handout.transport import Line, Transport
from bcgc_jax.steps.ledger import Chunk

# Seconds that the addition of a gradient takes at most; then the master asks again.
_ADDING = 1.0


class Order(NamedTuple):
    """A step begins for a worker.

    Attributes:
      step: its number.
      life: which of the worker's processes takes part.
      iteration: which samples are drawn with.
      pace: slowness on purpose, if any.
    """

    step: int
    life: int
    iteration: int
    pace: Pace | None = None


class Place(NamedTuple):
    """Where the coordinator listens, and how it is reached."""

    address: tuple[str, int]
    transport: Transport


class Sum(NamedTuple):
    """The sum of some chunks' gradients, and its number."""

    number: int
    label: frozenset[Chunk]
    leaves: Sequence[Array | np.ndarray]


class ChunkWorker:
    """One worker. `deliver` and `stop` may be called by another thread while it
    computes.

    Args:
      duty: that of all workers, with a `SharedPlan`.
      index: which worker this is.
      subsets: the samples of the chunks of `duty.plan.held(index)`, pytrees of arrays
        `[m, …]`.
    """

    def __init__(
        self, duty: Duty[SharedPlan], index: int, subsets: Mapping[Chunk, PyTree]
    ) -> None:
        self.duty = duty
        self.index = index
        self.subsets = subsets
        self._sizes = duty.plan.sizes
        if duty.batch_size is None:
            self._drawn = None
        else:
            self._drawn = duty.plan.drawn(duty.batch_size)
        self._keys = keys_of(duty.loss, jax.random.key(duty.seed))
        self._order = Order(-1, 0, 0)
        self._began = 0.0
        self._params: PyTree = None
        self._last: tuple[Chunk, list[Array]] | None = (
            None  # not decided yet; without samples []
        )
        self._sums: dict[int, Sum] = {}
        self._stopped = -1
        self._changed = threading.Condition()
        self._line: tuple[Place, Join, Line] | None = None

    def warm_up(self) -> None:
        """Compile each shape of chunks, and the addition."""
        zeros = [
            np.zeros(np.shape(x), x.dtype) for x in jax.tree.leaves(self.duty.params)
        ]
        shapes: dict[Any, Chunk] = {}
        self.open(self._order, zeros)
        for chunk in self.subsets:
            shape = tuple(leaf.shape for leaf in jax.tree.leaves(self._samples(chunk)))
            shapes.setdefault(shape, chunk)
        gradient: list[Array] = []
        with jax.enable_x64(self.duty.x64):
            for chunk in shapes.values():
                gradient = self._gradient_of(chunk)
            if gradient:
                gradient = added(_begun(gradient, 1.0), gradient, 1.0)
            jax.block_until_ready(gradient)

    def share(
        self, order: Order, leaves: Sequence[np.ndarray], place: Place
    ) -> Iterator[Sum]:
        """Take part in a step until it is over: the sums that are asked for."""
        self.open(order, leaves)
        question: Begin | Done = Begin(order.step)
        while not (answer := self._ask(place, question)).over:
            question = self.work(answer)
            if answer.send is not None:
                yield self.sum(answer.send)

    def open(self, order: Order, leaves: Sequence[np.ndarray]) -> None:
        """Begin a step, with its parameters' `leaves`; forget the one before."""
        with self._changed:
            self._order = order
            self._began = time.perf_counter()
            self._sums = {}
            self._last = None
            self._changed.notify_all()  # whoever waits for a sum of an earlier step
        with jax.enable_x64(self.duty.x64):  # a setting of each thread
            tree = jax.tree.structure(self.duty.params)
            self._params = jax.tree.unflatten(tree, jax.device_put(list(leaves)))

    def work(self, answer: Answer) -> Done:
        """Do what the answer says, and ask again."""
        with jax.enable_x64(self.duty.x64):
            self._decide(answer)
            if answer.ticket is None or answer.chunk is None:
                assert answer.send is not None
                return Done((self._order.step, answer.send))
            started = time.perf_counter()
            gradient = self._gradient_of(answer.chunk)
        self._last = answer.chunk, gradient
        self._wait(answer.chunk, started)
        return Done(answer.ticket, time.perf_counter() - started)

    def deliver(self, step: int, number: int, chunks: int) -> Sum | None:
        """A sum as soon as it has so many chunks; None if it is not there.

        Another thread may be adding.
        """

        def is_over() -> bool:
            return step != self._order.step

        with self._changed:
            self._changed.wait_for(
                lambda: is_over() or self._has(number, chunks), _ADDING
            )
            asked = None
            if self._has(number, chunks) and not is_over():
                asked = self._sums[number]
        if asked is None:
            return None
        return _on_host(asked)

    def sum(self, number: int) -> Sum:
        """A sum that stands, for the thread that computes."""
        return _on_host(self._sums[number])

    def _has(self, number: int, chunks: int) -> bool:
        return number in self._sums and len(self._sums[number].label) == chunks

    def stop(self, step: int) -> None:
        """End what waits for ever in this step."""
        with self._changed:
            self._stopped = max(self._stopped, step)
            self._changed.notify_all()

    def _ask(self, place: Place, question: Begin | Done, retry: bool = True) -> Answer:
        """The answer; where the line breaks, call again once, and ask again."""
        try:
            return ask(self._line_to(place), question)
        except OSError as error:
            self._line = None
            if retry:
                return self._ask(place, question, retry=False)
            host, port = place.address
            raise ConnectionError(
                f"worker {self.index} does not reach the master at {host}:{port}, "
                f"which hands out chunks ({error}): it has ended, or a firewall "
                "refuses or cuts what is between them"
            ) from error

    def _line_to(self, place: Place) -> Line:
        """The line that is there, unless it leads to another place."""
        who = Join(self.index, self._order.life)
        if self._line is None or self._line[:2] != (place, who):
            line = place.transport.connect(place.address)
            self._line = place, who, line
            ask(line, who)
        return self._line[2]

    def _decide(self, answer: Answer) -> None:
        """Add the last gradient to a sum, or drop it. Sums being sent stay."""
        last = self._last
        self._last = None
        with self._changed:
            self._sums = {
                number: partial_sum
                for number, partial_sum in self._sums.items()
                if number in answer.standing
            }
            if (
                last is None
                or answer.keep is None
                or answer.keep not in answer.standing
            ):
                return
            chunk, gradient = last
            before = self._sums.get(answer.keep, Sum(answer.keep, frozenset(), []))
            total = before.leaves
            weight = float(self.duty.weights[chunk])
            if gradient:
                if total:
                    total = added(total, gradient, weight)
                else:
                    total = _begun(gradient, weight)
            self._sums[answer.keep] = Sum(answer.keep, before.label | {chunk}, total)
            self._changed.notify_all()

    def _gradient_of(self, chunk: Chunk) -> list[Array]:
        """The leaves of a chunk's gradient, computed; none without samples."""
        iteration = self._order.iteration
        subset, number = chunk
        with noted(f"chunk {number} of subset {subset}", iteration):
            batch = self._samples(chunk)
            if not num_samples(batch):
                return []
            keys = self._keys(iteration, *chunk)
            return jax.block_until_ready(
                _gradient(self.duty.loss, self._params, batch, *keys)
            )

    def _samples(self, chunk: Chunk) -> PyTree:
        """The samples of a chunk, the same for all workers that store it."""
        data = self.subsets[chunk]
        if self._drawn is None:
            return data
        count = self._drawn[chunk[1]]
        return drawn(data, count, self.duty.seed, self._order.iteration, *chunk)

    def _wait(self, chunk: Chunk, started: float) -> None:
        """Slow on purpose to the chunk's end: as compute, without interruption."""
        if self._order.pace is None:
            return
        ((late, subset),) = self._order.pace.spans()[:, :2]
        if subset >= NEVER:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped >= self._order.step)
            return
        share = self._sizes[chunk[1]] / sum(self._sizes)
        end = max(started, self._began + late) + (subset - late) * share
        time.sleep(max(end - time.perf_counter(), 0))


def _on_host(partial_sum: Sum) -> Sum:
    return partial_sum._replace(
        leaves=[np.asarray(leaf) for leaf in partial_sum.leaves]
    )


@functools.partial(jax.jit, static_argnums=0)
def _gradient(loss: Loss, params: PyTree, batch: PyTree, *key: Array) -> list[Array]:
    return jax.tree.leaves(jax.grad(loss)(params, batch, *key))


@jax.jit
def _begun(gradient: Sequence[Any], weight: float) -> list[Array]:
    """A sum of one gradient, in float32 at least."""
    return [
        weight * leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        for leaf in gradient
    ]
