"""A worker process in work sharing: it computes the chunks that it is given, and keeps one sum.

At most it holds two vectors: a sum and the last gradient, or a sum that is asked for and a gradient. What the
master decides of the gradient comes with whatever it asks next. No line here knows of Ray.
"""

import functools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.cluster.worker import NEVER, Duty
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import Loss, PyTree, num_samples
from bcgc_jax.plans.handout import Chunk, Label, Name


class Decision(NamedTuple):
    """What the master has decided for a worker, in a `call` its decision of this `number`.

    Attributes:
      ticket: of the worker's last gradient; None before the first.
      keep: the sum that it is added to; None: it is dropped.
      standing: the worker's sums that the master still needs; others are forgotten.
    """

    call: int
    number: int
    ticket: Name | None = None
    keep: Name | None = None
    standing: tuple[Name, ...] = ()


class Begin(NamedTuple):
    """An iteration begins: its number, which samples are drawn with; slowness on purpose, if any.

    `pace` is when the worker begins, in seconds, and how many it takes at least for a unit of size.
    """

    iteration: int
    pace: tuple[float, float] | None = None


class _Sum(NamedTuple):
    label: Label
    leaves: list[Array]


class ChunkWorker:
    """One worker. `deliver` and `stop` may be called by another thread while it computes.

    Args:
      duty: that of all workers, with a `SharedPlan`.
      index: which worker this is.
      subsets: the samples of the chunks of `duty.plan.held(index)`, pytrees of arrays `[m, …]`.
    """

    def __init__(self, duty: Duty, index: int, subsets: Mapping[Chunk, PyTree]) -> None:
        assert isinstance(duty.plan, SharedPlan)
        self.duty, self.index, self.subsets = duty, index, subsets
        self._sizes = duty.plan.sizes
        self._drawn = None if duty.batch_size is None else duty.plan.drawn(duty.batch_size)
        self._begin, self._began = Begin(0), 0.0
        self._params: PyTree = None
        self._decided = Decision(-1, -1)  # the last one that was carried out
        self._last: tuple[Name, Chunk, list[Array]] | None = None  # not decided yet; without samples []
        self._sums: dict[Name, _Sum] = {}
        self._turn = threading.Lock()
        self._stopped, self._changed = -1, threading.Condition()

    def warm_up(self) -> None:
        """Compile each shape of chunks, and the addition."""
        zeros = [np.zeros(np.shape(x), x.dtype) for x in jax.tree.leaves(self.duty.params)]
        shapes: dict[Any, Chunk] = {}
        self._open(Decision(0, 0), Begin(0), zeros)
        for chunk in self.subsets:
            shapes.setdefault(tuple(leaf.shape for leaf in jax.tree.leaves(self._samples(chunk))), chunk)
        with jax.enable_x64(self.duty.x64):
            for chunk in shapes.values():
                found = self._computed(chunk)
            jax.block_until_ready(_added(_begun(found, 1.0), found, 1.0) if found else found)

    def stop(self, call: int) -> None:
        """Whoever waits for ever in this call of the master need not."""
        with self._changed:
            self._stopped = max(self._stopped, call)
            self._changed.notify_all()

    def exchange(
        self,
        decision: Decision,
        ticket: Name,
        chunk: Chunk,
        begin: Begin | None = None,
        leaves: Sequence[np.ndarray] = (),
    ) -> float:
        """Carry out a decision, then compute a chunk: its seconds, without slowness on purpose.

        The first one of a call begins the iteration, with the `leaves` of the parameters.
        """
        started = time.perf_counter()
        with jax.enable_x64(self.duty.x64):  # a setting of each thread
            if begin is not None:
                self._open(decision, begin, leaves)
            self._carry_out(decision)
            found = self._computed(chunk)
            jax.block_until_ready(found)
        seconds = time.perf_counter() - started
        self._wait(decision.call, chunk, started)
        with self._turn:
            if decision.call == self._decided.call:
                self._last = ticket, chunk, found
        return seconds

    def deliver(self, decision: Decision, name: Name) -> tuple[Label, list[np.ndarray]] | None:
        """A sum: its chunks, and the leaves; None if it is not there any more."""
        with jax.enable_x64(self.duty.x64):
            self._carry_out(decision)
            with self._turn:
                asked = self._sums.get(name)
            return None if asked is None else (asked.label, [np.asarray(leaf) for leaf in asked.leaves])

    def _open(self, decision: Decision, begin: Begin, leaves: Sequence[np.ndarray]) -> None:
        """What is left of an earlier call is forgotten."""
        with self._turn:
            self._begin, self._began = begin, time.perf_counter()
            self._sums, self._last = {}, None
            self._decided = Decision(decision.call, decision.number - 1)
        with jax.enable_x64(self.duty.x64):
            tree = jax.tree.structure(self.duty.params)
            self._params = jax.tree.unflatten(tree, jax.device_put(list(leaves)))

    def _carry_out(self, decision: Decision) -> None:
        """Once, and never after a later one: two threads bring them."""
        with self._turn:
            if decision.call != self._decided.call or decision.number <= self._decided.number:
                return
            self._decided = decision
            self._sums = {name: one for name, one in self._sums.items() if name in decision.standing}
            if self._last is None or self._last[0] != decision.ticket:
                return
            _, chunk, found = self._last
            self._last = None
            if decision.keep is not None and decision.keep in decision.standing:
                self._add(decision.keep, chunk, found)

    def _add(self, name: Name, chunk: Chunk, found: list[Array]) -> None:
        """To a new sum: one that was asked for stays as it is."""
        label, leaves = self._sums.get(name, _Sum(frozenset(), []))
        weight = float(self.duty.weights[chunk])
        if found:
            leaves = _added(leaves, found, weight) if leaves else _begun(found, weight)
        self._sums[name] = _Sum(label | {chunk}, leaves)

    def _computed(self, chunk: Chunk) -> list[Array]:
        """The leaves of its gradient; none without samples."""
        batch = self._samples(chunk)
        return _gradient(self.duty.loss, self._params, batch) if num_samples(batch) else []

    def _samples(self, chunk: Chunk) -> PyTree:
        """The same for all that store it."""
        data = self.subsets[chunk]
        if self._drawn is None:
            return data
        draw = np.random.default_rng([self.duty.seed, self._begin.iteration, *chunk])
        chosen = draw.permutation(num_samples(data))[: self._drawn[chunk[1]]]
        return jax.tree.map(lambda x: x[chosen], data)

    def _wait(self, call: int, chunk: Chunk, started: float) -> None:
        """Slowness on purpose, to the chunk's end: nobody can interrupt it, as a program that runs."""
        if self._begin.pace is None:
            return
        late, unit = self._begin.pace
        if max(late, unit) >= NEVER:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped >= call)
            return
        end = max(started, self._began + late) + unit * self._sizes[chunk[1]]
        time.sleep(max(end - time.perf_counter(), 0))


@functools.partial(jax.jit, static_argnums=0)
def _gradient(loss: Loss, params: PyTree, batch: PyTree) -> list[Array]:
    return jax.tree.leaves(jax.grad(loss)(params, batch))


@jax.jit
def _begun(found: list[Array], weight: float) -> list[Array]:
    """In float32 at least."""
    return [weight * leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in found]


@jax.jit
def _added(total: list[Array], found: list[Array], weight: float) -> list[Array]:
    return [one + other for one, other in zip(total, _begun(found, weight), strict=True)]
