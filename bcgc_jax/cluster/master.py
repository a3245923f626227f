"""The master: gradients from worker processes, by any `Round`, some of them slow,
silent or dead.

The gradient is exact or there is none: a worker that died, or does not answer, is
replaced by a new process with the same data, or the caller is told (`WorkersLost`) and
plans anew for those that are left.
"""

import contextlib
import functools
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax.cluster import signals
from bcgc_jax.cluster.engine import Made, Source, session, shared_programs
from bcgc_jax.cluster.processes import Assignment, Processes, WorkersLost
from bcgc_jax.cluster.rounds import Ask, Round, Work
from bcgc_jax.cluster.worker import NEVER, Duty
from bcgc_jax.coding.checks import check_params
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.codes import refuse_complex
from bcgc_jax.coding.gradients import (
    CodingPlan,
    Loss,
    PyTree,
    check_batch_size,
    num_samples,
)
from bcgc_jax.coding.pace import Pace
from bcgc_jax.handout.coordinator import Coordinator
from bcgc_jax.handout.transport import Tcp
from bcgc_jax.steps.ledger import Chunk


class ClusterGradient(NamedTuple):
    """The full gradient of the loss, and how it came about.

    `seconds` from the call to the last block; `completed`, `[B]`, when each block was;
    `arrived`, bool `[B, N]`, whose messages or sums had come by then; `work` of every
    task that was heard of. `busy`, bool `[N]`: with an earlier iteration, when this one
    began.
    """

    gradient: PyTree
    seconds: float
    completed: np.ndarray
    arrived: np.ndarray
    work: tuple[Work, ...]
    busy: np.ndarray


class Cluster(Processes):
    r"""N worker processes, and the gradients that they compute together.

    Args:
      num_workers: N processes; Ray is started on this machine unless there is an
        `address` of a cluster.
      replace: whether a lost worker is replaced; else `gradient` raises `WorkersLost`
        as soon as a block needs it, and `lost` names it before.
      patience: seconds of silence before a worker is asked whether it lives, and for
        its answer. A worker that is only slow answers, however long its block takes.
      store_bytes: of the data and of the parameters of ten steps, for the size of Ray's
        store. By default Ray chooses it, 30 % of the memory.
      num_gpus: of each worker, a share if less than 1; workers without one compute on
        the CPU.

    A context manager: at its end all processes are gone. `faults` are those of all
    iterations, and `size` is how many workers were asked for, whoever was given up
    since.

    Raises ImportError without Ray, ConnectionError where there is no cluster at the
    address, ValueError where it has too few free CPUs: each worker takes one, and on
    this machine alone they share what there is.

    >>> from bcgc_jax.coding.gradients import coding_plan, split_unevenly
    >>> data, params = np.arange(12.0, dtype=np.float32).reshape(4, 3), jnp.zeros(3)
    >>> plan = coding_plan(
    ...     jax.random.key(0), params, [1, 2]
    ... )  # two coordinates survive one of two workers
    >>> with Cluster(2) as cluster:
    ...     cluster.assign(
    ...         lambda p, batch: jnp.mean(batch @ p),
    ...         plan,
    ...         params,
    ...         split_unevenly(data, 2),
    ...     )
    ...     cluster.gradient(params).gradient.tolist()
    [4.5, 5.5, 6.5]
    """

    def __init__(
        self,
        num_workers: int,
        *,
        address: str | None = None,
        replace: bool = True,
        patience: float = 5.0,
        store_bytes: int = 0,
        num_gpus: float = 0,
    ) -> None:
        if num_workers < 1 or not patience > 0:
            raise ValueError(
                "a cluster needs at least one worker, and patience of more than 0 "
                "seconds"
            )
        self._numbers = itertools.count(1)
        self._calls = itertools.count(1)
        self._used = threading.RLock()
        self._is_local = address is None
        self._asked: Coordinator | None = None
        # Names of functions that make data, by what tells them apart for as long as
        # they are kept.
        self._sources: dict[int, tuple[int, Source]] = {}
        with contextlib.ExitStack() as stack:
            ray = stack.enter_context(session(address, num_workers, store_bytes))
            programs = stack.enter_context(shared_programs())
            super().__init__(
                ray,
                num_workers,
                programs,
                replace=replace,
                patience=patience,
                num_gpus=num_gpus,
            )
            # after the processes: one that still computes would ask in vain
            stack.callback(self._close_coordinator)
            stack.callback(self._end)
            self._stack = stack.pop_all()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def close(self) -> None:
        """End all processes, but not those of another `Cluster` here."""
        self._stack.close()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """The cluster is at work until a signal; ValueError in two threads."""
        if not self._used.acquire(blocking=False):
            raise ValueError(
                "the cluster is at work in another thread: one training at a time, or "
                "one each"
            )
        try:
            with signals.listening():
                yield
        finally:
            self._used.release()

    @property
    def plan(self) -> CodingPlan | SharedPlan:
        """The plan that the workers have been given."""
        return self.assignment.duty.plan

    def assign(
        self,
        loss: Loss,
        plan: CodingPlan | SharedPlan,
        params: PyTree,
        subsets: Source | Sequence[PyTree],
        *,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        """Give the workers their plan and data, and wait until they have compiled what
        they need.

        `subsets` are N pytrees of arrays `[m_j, …]`, of sizes that may differ: a mean
        loss is that over all samples. Or a function (j, N) to subset j of N, all of one
        size, which each worker calls for what it stores and keeps for the next plan.
        With fewer subsets than workers lost ones are dropped, and those left are
        numbered anew.

        Raises WorkersLost where some do not start.
        """
        self.take_up(
            self.prepare(loss, plan, params, subsets, batch_size=batch_size, seed=seed)
        )

    def prepare(
        self,
        loss: Loss,
        plan: CodingPlan | SharedPlan,
        params: PyTree,
        subsets: Source | Sequence[PyTree],
        *,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> Assignment:
        """Put the plan and the data of `assign` where workers find them; they go on as
        before.

        Until `is_ready`, which is to be asked now and then, they compile them beside
        what they do; `take_up` compiles nothing then.
        """
        self._check_open()
        check_params(params)
        stored: dict[Any, Any]
        coordinator = None
        if isinstance(plan, SharedPlan):
            coordinator = self._coordinator()
            stored, weights = self._chunks(plan, subsets, batch_size)
        else:
            stored, weights = self._subsets(plan, subsets, batch_size)
        host_plan, host_params = jax.tree.map(np.asarray, (plan, params))
        duty = Duty(
            loss=loss,
            plan=host_plan,
            params=host_params,
            weights=weights,
            batch_size=batch_size,
            seed=seed,
            x64=bool(jnp.result_type(float) == jnp.float64),
        )
        return Assignment(
            number=next(self._numbers),
            duty=duty,
            reference=self.ray.put(duty),
            subsets=stored,
            coordinator=coordinator,
        )

    def _coordinator(self) -> Coordinator:
        """The coordinator, which listens on this machine alone if it suffices."""
        if self._asked is None:
            host = "127.0.0.1"
            if not self._is_local:
                host = self.ray.util.get_node_ip_address()
            self._asked = Coordinator(Tcp(host, key=secrets.token_bytes(32)))
        return self._asked

    def _close_coordinator(self) -> None:
        if self._asked is not None:
            self._asked.close()

    def _made_subsets(self, source: Source, workers: int) -> list[Made]:
        """Each subset, to be made on the workers."""
        name, _ = self._sources.setdefault(id(source), (len(self._sources), source))
        return [Made(source, name, j, workers) for j in range(workers)]

    def _subsets(
        self,
        plan: CodingPlan,
        subsets: Source | Sequence[PyTree],
        batch_size: int | None,
    ) -> tuple[dict[int, Any], np.ndarray]:
        """Where the workers find each subset, and what its loss counts, `[N]`."""
        workers = plan.num_workers
        if callable(subsets):
            sources = self._made_subsets(subsets, workers)
            return dict(enumerate(sources)), np.ones(workers)
        sizes = _sizes(subsets, workers, batch_size)
        if plan.mean:
            weights = sizes / sizes.mean()
        else:
            weights = np.ones(workers)
        data = (jax.tree.map(np.asarray, subset) for subset in subsets)
        return {j: self.ray.put(subset) for j, subset in enumerate(data)}, weights

    def _chunks(
        self,
        plan: SharedPlan,
        subsets: Source | Sequence[PyTree],
        batch_size: int | None,
    ) -> tuple[dict[Chunk, Any], np.ndarray]:
        """Where workers find each chunk, and what it counts, if known here."""
        if batch_size is not None and min(plan.drawn(batch_size)) < 1:
            raise ValueError(
                f"a batch of {batch_size} samples of each subset leaves chunks without "
                "any: take more samples or fewer chunks"
            )
        if callable(subsets):
            sources = self._made_subsets(subsets, plan.num_workers)
            numbers = range(len(plan.sizes))
            return {
                (source.number, c): source for source in sources for c in numbers
            }, np.zeros(0)
        _sizes(subsets, plan.num_workers, batch_size)
        chunks, weights = plan.cut(subsets)
        return {chunk: self.ray.put(data) for chunk, data in chunks.items()}, weights

    def take_up(self, work: Assignment) -> None:
        """Have the workers do that from now on; raises what `assign` does."""
        with self.at_work():
            # Before all else: what it refuses leaves the workers with what they had.
            self._resize(work.duty.plan.num_workers)
            self._give(work)
            work.decoder()  # compiled while they load
            self._wait_until_loaded()
            if work.is_made:
                self._check_samples(work.duty.batch_size)
            # Ray's first call of a method takes longer than the others
            if work.ready < self.num_workers:
                self._collect(work.duty.params, None)

    def _check_samples(self, batch_size: int | None) -> None:
        counts = sorted(
            {count for process in self._living for count in process.samples}
        )
        if len(counts) > 1 or counts[0] < (batch_size or 0):
            self._assignment = None
            raise ValueError(
                "subsets that are made on the workers must have one size, and "
                "batch_size samples at least; there are some of "
                f"{' and '.join(map(str, counts))} samples: leave out the few too many"
            )

    def gradient(
        self, params: PyTree, pace: Pace | None = None, *, iteration: int | None = None
    ) -> ClusterGradient:
        """The gradient of the loss at `params`.

        With a `coding.pace.Pace`, in seconds, a worker is done no earlier: slowness on
        purpose. As a program, it cannot be interrupted within the pass of a chunk. A
        worker whose unit of load takes infinitely long does not answer in this
        iteration. Records have the number of the `iteration`, by default one more than
        the last, and mini-batches are drawn with it.

        Raises WorkersLost where a block cannot be completed any more, ValueError where
        too few are ever to be done, and what the loss raises in all workers.
        """
        refuse_complex("params", params)
        if pace is not None:
            pace = _checked(pace, self.plan)
        if iteration is None:
            self.iteration = self.iteration + 1
        else:
            self.iteration = iteration
        return self._collect(params, pace)

    def _collect(self, params: PyTree, pace: Pace | None) -> ClusterGradient:
        with self.at_work():
            begin = time.monotonic()
            call = next(self._calls)
            assignment = self.assignment
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
            # into the store once, not to each worker
            large = sum(leaf.nbytes for leaf in leaves) > 2**16
            sent_leaves = leaves
            if large:
                sent_leaves = self.ray.put(leaves)
            round_ = assignment.round(call, self.iteration, sent_leaves, pace, begin)
            try:
                return _Iteration(round_, self, call, begin).run()
            finally:
                round_.end()
                assignment.leave(round_)


def _sizes(
    subsets: Sequence[PyTree], workers: int, batch_size: int | None
) -> np.ndarray:
    """How many samples each subset has, `[N]`; ValueError if not N subsets."""
    if len(subsets) != workers:
        raise ValueError(
            f"there must be {workers} subsets, one a worker, got {len(subsets)}"
        )
    sizes = np.array([num_samples(data) for data in subsets], float)
    check_batch_size(batch_size, int(sizes.min()))
    return sizes


def _checked(pace: Pace, plan: CodingPlan | SharedPlan) -> Pace:
    """A pace with which the iteration ends."""
    pace = pace.checked(plan.num_tasks, plan.num_workers)
    if pace.ends().max(initial=0) >= NEVER and plan.completed(pace).max() >= NEVER:
        raise ValueError(
            "by their pace so many workers are never done that the iteration would not "
            f"end: give times below {NEVER:g} s to more of them, or train with more "
            "redundancy"
        )
    return pace


class _Iteration:
    """One iteration of `processes`, by a `round`; `call` is new, for `stop`."""

    def __init__(
        self, round_: Round, processes: Processes, call: int, begin: float
    ) -> None:
        self.round = round_
        self.processes = processes
        self.call = call
        self.ray = processes.ray
        self.begin = self.looked = begin
        self.workers = range(processes.num_workers)
        self.busy = np.zeros(len(self.workers), bool)
        # What may be ready next, whose it is, and who takes it: a stream of messages,
        # an answer, the start of a worker, the end of an old iteration.
        self.waiting: dict[Any, tuple[int, Callable[[Any, int], None]]] = {}
        self.computing: set[int] = set()

    @property
    def now(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.begin

    def run(self) -> ClusterGradient:
        """The gradient; WorkersLost if there is none, or what the loss raised."""
        try:
            for worker in self.workers:
                self._begin(worker)
            self._check()
            while (gradient := self.round.gradient()) is None:
                self._take()
        finally:
            for worker in self.computing:  # also where it ends with an exception
                if (process := self.processes[worker]) is not None:
                    process.actor.stop.remote(self.call)
        gradient = jax.block_until_ready(gradient)
        return ClusterGradient(
            gradient=gradient,
            seconds=self.now,
            completed=self.round.completed,
            arrived=self.round.arrived,
            work=tuple(self.round.work),
            busy=self.busy,
        )

    def _begin(self, worker: int) -> None:
        """Give a worker the iteration, or wait for what it must end before."""
        process = self.processes[worker]
        if process is None:
            self._send(self.round.lost(worker, self.now))
            return
        event = process.awaited()
        self.busy[worker] |= bool(process.unfinished)
        if event is None:
            process.is_asked()
            self._send(self.round.begin(worker, self.now))
            return
        self.waiting[event] = worker, self._awaited
        if event is process.starting:
            self._send(self.round.lost(worker, self.now))
        if why := self.processes.silence(worker):
            self._lose(worker, "hung", why)

    def _send(self, asks: Sequence[Ask]) -> None:
        for ask in asks:
            process = self.processes[ask.worker]
            assert process is not None  # of a lost one nothing counts as done
            answer = process.call(ask.method, ask.arguments)
            self.waiting[answer] = ask.worker, functools.partial(self._hear, ask)
            if ask.method != "deliver":
                self.computing.add(ask.worker)

    def _take(self) -> None:
        """Wait for whatever comes next, and take all that is there."""
        waiting = list(self.waiting)
        pause = self.processes.pause
        ready, _ = self.ray.wait(waiting, num_returns=1, timeout=pause)
        signals.check()
        if ready and len(waiting) > 1:
            ready, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for item in ready:
            if item in self.waiting:  # else lost by an event before
                self._take_one(item)
        self._send(self.round.look(self.now))
        # Also while others speak: what a silent one was asked for may be there already.
        if not ready or time.monotonic() - self.looked > pause:
            self.looked = time.monotonic()
            for worker in dict.fromkeys(worker for worker, _ in self.waiting.values()):
                if why := self.processes.silence(worker):
                    self._lose(worker, "hung", why)
            self._check()

    def _take_one(self, item: Any) -> None:
        worker, take = self.waiting[item]
        process = self.processes[worker]
        assert process is not None
        try:
            take(item, worker)
            process.speaks()
        except self.ray.exceptions.RayError as error:  # that too if messages are lost
            event = "died"
            if isinstance(error, self.ray.exceptions.RayTaskError):
                event = "failed"
                self.processes.check_raised({worker: error})
            self._lose(worker, event, error)
            self._check()

    def _awaited(self, event: Any, worker: int) -> None:
        """A worker has started, or caught up."""
        if event in self.processes.starting():
            self.processes.has_loaded(worker)
        del self.waiting[event]
        self._begin(worker)
        self._check()

    def _hear(self, ask: Ask, reference: Any, worker: int) -> None:
        """Take an answer, a message of a stream, or a stream's end."""
        message = None
        ended = True
        is_stream = ask.method != "deliver"
        if is_stream:
            with contextlib.suppress(StopIteration):
                message = self.ray.get(next(reference))
            ended = message is None or self.round.ended(ask, message)
        else:
            message = self.ray.get(reference)
        if ended:
            del self.waiting[reference]
            if is_stream:
                self.computing.discard(worker)
        if not is_stream or message is not None:
            self._send(self.round.heard(ask, message, self.now))
        if ended and is_stream:
            self._check()

    def _lose(self, worker: int, what: str, why: Exception | str) -> None:
        """Forget what was expected of a worker; expect its successor."""
        self.waiting = {
            item: whose for item, whose in self.waiting.items() if whose[0] != worker
        }
        self.computing.discard(worker)
        self.processes.lose(worker, what, why)
        self._send(self.round.lost(worker, self.now))
        self._begin(worker)

    def _check(self) -> None:
        """Raise WorkersLost where what has come and what may come is too little."""
        if short := self.round.short({worker for worker, _ in self.waiting.values()}):
            raise WorkersLost(
                self.processes.lost,
                f"{short}{self.processes.why}; plan for the workers left, as "
                "train_on_cluster does, or let lost ones be replaced",
            ) from self.processes.error
