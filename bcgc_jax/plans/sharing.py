"""Define `WorkSharing`: the recovery condition of dynamic load balancing."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._derivatives import without_derivative
from bcgc_jax._pytree import pytree_dataclass, static_field
from bcgc_jax.balancing.asking import Asking
from bcgc_jax.balancing.chunk_lengths import UNITS, chunk_sizes
from bcgc_jax.balancing.lockstep import Chunks, handed_out, in_turn
from bcgc_jax.balancing.placement import Placement, Storage, chunk_tables
from bcgc_jax.plans.completion import Completion, in_order
from bcgc_jax.plans.passes import Passes
from bcgc_jax.plans.plan import Plan, Requirements
from bcgc_jax.plans.shared_step import (
    all_data_runtime,
    padded_runtimes,
    padded_tables,
    shared_runtime,
)
from bcgc_jax.plans.worker import Cost, Load, Tasks

# Number of steps that NumPy computes at a time. Their arrays fit into a processor's
# cache.
_IN_LOCKSTEP = 2**10
# Number of steps that a compiled program computes at a time.
_IN_PROGRAM = 2**9


@pytree_dataclass
class WorkSharing(Completion):
    """Define that a step ends when its last chunk, given to a free worker, ends.

    Free workers request chunks from a central queue. After the last chunk, all workers
    are free. The plan has one block with all coordinates, so each chunk is a forward
    and a backward pass.

    Attributes:
      num_workers: N.
      max_subsets: Storage per worker in data subsets, D.
      chunks: Number of chunks (microbatches) per subset, C.
      equal_chunks: Whether chunks have equal sizes. Otherwise the last one is divided
        again.
      whole_subsets: Whether workers store complete subsets, and not chunks of many
        subsets.
      round_trip: Request latency before each chunk, in the unit of `Worker`.
      load_line: Coefficients (a, b) from a log: a chunk of this load takes a + b · load
        seconds. `dispatch.serve` uses them to assign chunks.
      usual_cost: Mean seconds of a complete chunk in a log.
      hosts: Host number of each worker, if the placement depends on hosts. Otherwise
        None.
    """

    num_workers: int = static_field()
    max_subsets: int = static_field()
    chunks: int = static_field()
    equal_chunks: bool = static_field(default=False)
    whole_subsets: bool = static_field(default=False)
    round_trip: ArrayLike = 0.0
    load_line: tuple[float, float] | None = static_field(default=None)
    usual_cost: float | None = static_field(default=None)
    hosts: tuple[int, ...] | None = static_field(default=None)

    handed_out = True
    bound_of = "storage"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of a subset's chunks; `UNITS` is 1 / C of a subset."""
        return chunk_sizes(self.chunks, self.equal_chunks)

    @property
    def stored(self) -> Storage:
        """Placement of the chunks, which does not depend on their sizes."""
        place = Placement(
            *(self.num_workers, self.max_subsets, len(self.sizes)),
            equal_chunks=True,
            whole_subsets=self.whole_subsets,
            hosts=self.hosts,
        )
        return place.storage

    def load(self, sizes: Array, tasks: Tasks, cost: Cost) -> Load:
        """Compute the load of a complete data subset."""
        return in_order(sizes, tasks, cost)

    def runtimes(self, load: Load, overlap: bool, starts: Array, times: Array) -> Array:
        """Compute the runtimes. Each worker sends its sum after its last chunk.

        A sample of the runtime jumps where another worker gets a chunk. The mean of its
        derivatives is not the derivative of the mean, so derivatives are NaN.
        """
        workers = self.num_workers
        unit = load.work[-1] / (UNITS * self.chunks)
        seconds = times[..., :workers] * unit
        round_trip = jnp.asarray(self.round_trip, seconds.dtype)
        arguments = starts[..., :workers].astype(seconds.dtype), seconds, round_trip
        end = without_derivative(self._ends(*arguments), arguments)
        sent = 0 if load.sent is None else load.sent[-1]
        return end + sent

    def ended(
        self,
        subset: float,
        passes: Passes | None,
        block: np.ndarray,
        starts: Any,
        times: Any,
    ) -> np.ndarray:
        return self.in_lockstep(times * subset, starts)

    def in_lockstep(
        self, times: np.ndarray, starts: np.ndarray | None = None
    ) -> np.ndarray:
        """Compute the ends of steps, `[K]`, from seconds per subset, `[K, N]`.

        Workers begin at their `starts`, `[K, N]`, or at time 0.
        """
        sizes = np.tile(self.sizes, self.num_workers)
        share = sizes / (UNITS * self.chunks)
        largest_first = np.argsort(-sizes, kind="stable")
        round_trip = float(np.asarray(self.round_trip))
        ends = []
        for drawn in np.array_split(
            np.arange(len(times)), math.ceil(len(times) / _IN_LOCKSTEP)
        ):
            shape = len(drawn), len(share)
            pauses = np.zeros((len(drawn), self.num_workers, 0))
            begins = None
            if starts is not None:
                begins = starts[drawn]
            lengths = np.broadcast_to(share, shape)
            chunks = Chunks(times[drawn], lengths, pauses, starts=begins)
            if self.max_subsets == self.num_workers:
                order = np.broadcast_to(largest_first, shape)
                ends.append(in_turn(chunks, order, round_trip))
            else:
                tables = chunk_tables(self.stored, self.sizes)
                ends.append(handed_out(tables, chunks, Asking(round_trip)))
        return np.concatenate(ends)

    def in_shared_program(
        self, times: np.ndarray, starts: np.ndarray, max_workers: int
    ) -> np.ndarray:
        """Compute `in_lockstep` with one program for all N ≤ `max_workers`.

        Once compiled, it takes half of NumPy's time. It is for workers that do not
        store all data.
        """
        tables = chunk_tables(self.stored, self.sizes)
        turns = np.int32(len(tables.size) - 1 + self.num_workers)
        tables = padded_tables(tables, max_workers)
        added = [(0, -len(times) % _IN_PROGRAM), (0, max_workers - self.num_workers)]
        seconds = np.pad(times / times.dtype.type(UNITS * self.chunks), added)
        starts = np.pad(starts, added, constant_values=np.inf)
        round_trip = jnp.asarray(self.round_trip, times.dtype)
        ends = [
            padded_runtimes(
                *(tables, turns, starts[first : first + _IN_PROGRAM]),
                *(seconds[first : first + _IN_PROGRAM], round_trip),
            )
            for first in range(0, len(seconds), _IN_PROGRAM)
        ]
        return np.concatenate(ends)[: len(times)]

    def _ends(self, starts: Array, seconds: Array, round_trip: Array) -> Array:
        """Compute the ends of steps from seconds per unit of size, `[..., N]`."""
        step: Callable[[Array, Array, Array], Array]
        if self.max_subsets == self.num_workers:
            step = functools.partial(all_data_runtime, self.sizes)
        else:
            step = functools.partial(
                shared_runtime, chunk_tables(self.stored, self.sizes)
            )
        of_draw = 0 if round_trip.ndim else None
        for _ in range(seconds.ndim - 1):
            step = jax.vmap(step, (0, 0, of_draw))
        return step(starts, seconds, round_trip)

    def storage(self, data: np.ndarray, num_workers: int) -> Storage:
        return self.stored

    def least_workers(self, data: np.ndarray) -> int:
        return self.num_workers

    def fits(self, size: Array, data: Array, num_workers: Array) -> Array | bool:
        return jnp.all(num_workers == self.num_workers)

    def width(self, load: Load, overlap: bool) -> int:
        """Count the numbers per worker: open chunks, and holders of its chunks."""
        return len(self.sizes) * (1 + self.max_subsets**2 // self.num_workers)


def sharing_plan(total: Any, rule: WorkSharing) -> Plan:
    """Plan all `total` coordinates as one block of dynamically assigned chunks.

    >>> plan = sharing_plan(5.0, WorkSharing(num_workers=4, max_subsets=2, chunks=8))
    >>> (
    ...     plan.sizes.tolist(),
    ...     int(plan.known_needs.stored_subsets),
    ...     int(plan.known_needs.round_trips),
    ... )
    ([5.0], 2, 10)
    """
    sizes = jnp.asarray(total)[None]
    ones = np.ones(1, int)
    stored = jnp.asarray(rule.max_subsets)
    questions = jnp.asarray(len(rule.sizes))
    sent = jnp.ones((), sizes.dtype)
    needs = Requirements(
        stored, sent, questions, jnp.asarray(True), lost=jnp.zeros_like(sent)
    )
    return Plan(
        sizes=sizes,
        block=0 * ones,
        data=ones,
        share=ones.astype(sizes.dtype),
        completion=rule,
        known_needs=needs,
    )
