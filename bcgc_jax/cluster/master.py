"""The master: coded gradients from worker processes, some of them slow, silent or dead.

The messages of all workers are streams; the earliest of all is taken first. A block at level n is decoded
with its (N-n)-th message, and with the last block the workers are told to stop. The gradient is exact or
there is none: a worker whose process died, or that does not answer, is replaced by a new process with the
same data, or the caller is told (`WorkersLost`) and plans anew for those that are left.
"""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.cluster.engine import actor_class, session
from bcgc_jax.cluster.worker import Duty
from bcgc_jax.coded_gradients import (
    CodingPlan,
    Loss,
    PyTree,
    assemble_gradient,
    decode_block,
)
from bcgc_jax.codes import decoding_weights

# Larger arguments of a call are put into the store once, instead of being sent to each worker.
_INLINE = 2**16
# Unfinished iterations a worker may be behind before it gets no more; its next one then comes when it is
# done with these. Processes that end while they start, one after another, before it is given up.
_BEHIND, _ATTEMPTS = 2, 3


class Fault(NamedTuple):
    """What happened to a `worker` in an `iteration`: "died", "hung", "replaced"."""

    iteration: int
    worker: int
    what: str


class Work(NamedTuple):
    """What one message cost: `seconds` that a `worker` computed for a `block` of an `iteration`."""

    iteration: int
    worker: int
    block: int
    seconds: float


class ClusterGradient(NamedTuple):
    """The full gradient of the loss, and how it came about.

    `seconds` from the call to the last block; `completed`, `[B]`, when each block was; `arrived`, bool
    `[B, N]`, whose messages had come by then; `work` of every message that was taken.
    """

    gradient: PyTree
    seconds: float
    completed: np.ndarray
    arrived: np.ndarray
    work: tuple[Work, ...]


class WorkersLost(RuntimeError):
    """Workers are lost, and a block needs them. `workers` are all that are lost, by number."""

    def __init__(self, workers: Sequence[int], reason: str) -> None:
        self.workers = tuple(workers)
        super().__init__(f"worker {', '.join(map(str, workers))} lost: {reason}")


@dataclasses.dataclass
class _Remote:
    """A worker's process as the master sees it."""

    actor: Any
    starting: Any  # the reference that is ready once it has loaded, None from then on
    pid: int | None = None
    node: str | None = None
    unfinished: list[Any] = dataclasses.field(default_factory=list)  # references of its iterations
    heard: float = 0.0  # when it last gave a sign of life
    asked: Any = None  # the reference of a question whether it lives
    asked_at: float = 0.0
    attempts: int = 0


class Cluster:
    r"""N worker processes, and the gradients that they compute together.

    Args:
      num_workers: N processes; Ray is started on this machine unless there is an `address` of a cluster.
      replace: whether a lost worker is replaced; else `gradient` raises `WorkersLost` as soon as a block
        needs it, and `lost` names it before.
      patience: seconds of silence before a worker is asked whether it lives, and for its answer. A worker
        that is only slow answers, however long its block takes.
      store_bytes: of the data and the parameters, for the size of Ray's store.

    A context manager: at its end all processes are gone. ImportError without Ray.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        address: str | None = None,
        replace: bool = True,
        patience: float = 5.0,
        store_bytes: int = 0,
    ) -> None:
        if num_workers < 1 or not patience > 0:
            raise ValueError("a cluster needs at least one worker, and patience of more than 0 seconds")
        self.replace, self.patience = replace, patience
        self.iteration = 0
        self.faults: list[Fault] = []
        self._duty: Duty | None = None
        self._duty_ref: Any = None
        self._subsets: list[Any] = []
        with contextlib.ExitStack() as stack:
            self._ray = stack.enter_context(session(address, num_workers, store_bytes))
            self._actor = actor_class(self._ray)
            self._remotes: list[_Remote | None] = [None] * num_workers
            stack.callback(self._release)
            self._stack = stack.pop_all()
        self._here = self._ray.get_runtime_context().get_node_id()
        room = int(self._ray.cluster_resources().get("CPU", 0))
        if room < num_workers:  # else Ray would wait for more without a word
            self.close()
            raise ValueError(f"the Ray cluster has {room} CPUs, too few for {num_workers} workers")

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        self._stack.close()

    @property
    def num_workers(self) -> int:
        return len(self._remotes)

    @property
    def plan(self) -> CodingPlan:
        """That the workers have been given."""
        if self._duty is None:
            raise ValueError("the workers have no work yet: call assign first")
        return self._duty.plan

    @property
    def lost(self) -> tuple[int, ...]:
        """Workers that are lost and not being replaced."""
        return tuple(w for w, remote in enumerate(self._remotes) if remote is None and self._duty is not None)

    @property
    def pids(self) -> tuple[int | None, ...]:
        """The process of each worker, None while it starts."""
        return tuple(None if r is None or r.starting is not None else r.pid for r in self._remotes)

    def resize(self, num_workers: int) -> None:
        """Have this many workers from the next `assign` on, lost ones replaced."""
        remotes = [remote for remote in self._remotes if remote is not None]
        for remote in remotes[num_workers:]:
            self._end(remote)
        self._remotes = [*remotes[:num_workers], *[None] * (num_workers - len(remotes))]
        self._duty = None

    def assign(
        self,
        loss: Loss,
        plan: CodingPlan,
        params: PyTree,
        subsets: Sequence[PyTree],
        *,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        """Give the workers their codes and data, and wait until they have compiled what they need.

        `subsets` are N pytrees of arrays `[m_j, …]`, of sizes that may differ by a sample: a mean loss is
        that over all samples. If there are fewer than there were workers, lost ones are dropped, and those
        left are numbered anew.
        """
        if len(subsets) != plan.num_workers:
            raise ValueError(f"there must be {plan.num_workers} subsets, one a worker, got {len(subsets)}")
        sizes = np.array([len(jax.tree.leaves(data)[0]) for data in subsets], float)
        weights = sizes / sizes.mean() if plan.mean else np.ones(len(sizes))
        if batch_size is not None and not 1 <= batch_size <= sizes.min():
            raise ValueError(
                f"batch_size must be from 1 to {int(sizes.min())}, the samples of a subset, got {batch_size}"
            )
        host: tuple[CodingPlan, PyTree] = jax.tree.map(np.asarray, (plan, params))
        x64 = bool(jnp.result_type(float) == jnp.float64)
        duty = Duty(loss, host[0], host[1], weights, batch_size, seed, x64)
        self._duty_ref = self._ray.put(duty)
        self._subsets = [self._ray.put(jax.tree.map(np.asarray, data)) for data in subsets]
        self.resize(plan.num_workers)
        self._duty = duty
        for worker, remote in enumerate(self._remotes):
            if remote is None:
                self._spawn(worker)
            else:
                self._load(worker, remote)
        self._compile(host[0], params)
        while any(r is not None and r.starting is not None for r in self._remotes):
            refs = {r.starting: w for w, r in enumerate(self._remotes) if r is not None and r.starting}
            ready, _ = self._ray.wait(list(refs), num_returns=1)
            for ref in ready:
                self._started(refs[ref])
        if self.lost:
            raise WorkersLost(self.lost, "their processes end while they start")
        self.gradient(params)  # Ray's first call of a method takes longer than the others

    def gradient(self, params: PyTree, finish: np.ndarray | None = None) -> ClusterGradient:
        """The gradient of the loss at `params`.

        With `finish`, `[B, N]`, worker w sends block b no earlier than that many seconds after it began:
        slowness on purpose.

        Raises WorkersLost where a block cannot be completed any more, and what the loss raised.
        """
        self.iteration += 1
        return _Collection(self, self.plan, params, finish).run()

    def _compile(self, plan: CodingPlan, params: PyTree) -> None:
        """The master's side of the arithmetic."""
        dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]

        def decoded(encoding: Array, arrived: Array, values: Array, block: int) -> tuple[Array, Any]:
            weights, decodable = decoding_weights(encoding, arrived)
            ends = np.cumsum([p.stop - p.start for p in plan.blocks[block].pieces])[:-1]
            with jax.enable_x64(True):
                pieces = [list(rows) for rows in jnp.split(values, ends.tolist(), axis=1)]
            return decodable, decode_block(plan, block, weights, pieces, dtypes)

        self._decode = jax.jit(decoded, static_argnames="block")
        self._assemble = jax.jit(lambda parts, like: assemble_gradient(plan, parts, like))
        self._encodings = [np.asarray(code.encoding) for code in plan.codes]
        self._levels = np.array([block.level for block in plan.blocks])
        everyone = np.ones(plan.num_workers, bool)
        parts = []
        for b, block in enumerate(plan.blocks):
            dtype = np.float64 if plan.codes[b].wide else np.result_type(np.float32, *dtypes)
            parts.append(self._decoded(b, everyone, np.zeros((plan.num_workers, block.size), dtype))[1])
        jax.block_until_ready(self._assemble(parts, params))

    def _decoded(self, block: int, arrived: np.ndarray, values: np.ndarray) -> tuple[Array, Any]:
        with jax.enable_x64(True):  # else messages of float64 would be cut on their way into `jit`
            return self._decode(self._encodings[block], arrived, values, block=block)

    def _spawn(self, worker: int, attempts: int = 0) -> None:
        actor = self._actor.options(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD").remote()
        remote = _Remote(actor, None, attempts=attempts)
        self._remotes[worker] = remote
        self._load(worker, remote)

    def _load(self, worker: int, remote: _Remote) -> None:
        held = {j: self._subsets[j] for j in self.plan.held(worker)}
        remote.starting = remote.actor.load.remote(self._duty_ref, worker, held)
        remote.asked = None

    def _started(self, worker: int) -> None:
        """Take note that a worker has loaded; if its process ended instead, it is lost."""
        remote = self._remotes[worker]
        assert remote is not None
        try:
            remote.node, remote.pid = self._ray.get(remote.starting)
        except self._ray.exceptions.RayActorError:
            self._lose(worker, "died")
        except self._ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        else:
            remote.starting, remote.attempts, remote.heard = None, 0, time.monotonic()

    def _lose(self, worker: int, what: str) -> None:
        """End what is left of a worker, and start another in its place if that is wanted."""
        remote = self._remotes[worker]
        assert remote is not None
        self.faults.append(Fault(self.iteration, worker, what))
        self._end(remote)
        self._remotes[worker] = None
        if self.replace and remote.attempts < _ATTEMPTS:
            self._spawn(worker, remote.attempts + 1)
            self.faults.append(Fault(self.iteration, worker, "replaced"))

    def _end(self, remote: _Remote) -> None:
        self._ray.kill(remote.actor, no_restart=True)
        if remote.pid is not None and remote.node == self._here:
            with contextlib.suppress(ProcessLookupError):  # a stopped process hears no one else
                os.kill(remote.pid, signal.SIGKILL)

    def _release(self) -> None:
        for remote in self._remotes:
            if remote is not None:
                self._end(remote)
        self._remotes = []

    def _silent(self, worker: int) -> bool:
        """Whether a worker is to be counted as hung: silent, asked, and still silent."""
        remote, now = self._remotes[worker], time.monotonic()
        assert remote is not None
        if remote.asked is not None:
            answered, _ = self._ray.wait([remote.asked], timeout=0)
            if answered:
                remote.asked, remote.heard = None, now
        elif now - remote.heard > self.patience:
            remote.asked, remote.asked_at = remote.actor.answer.remote(), now
        return remote.asked is not None and now - remote.asked_at > self.patience


class _Collection:
    """One iteration: messages until each block is complete."""

    def __init__(self, cluster: Cluster, plan: CodingPlan, params: PyTree, finish: np.ndarray | None) -> None:
        self.cluster, self.ray, self.params, self.finish = cluster, cluster._ray, params, finish
        self.begin = time.monotonic()
        self.size = [block.size for block in plan.blocks]
        self.needed = plan.num_workers - cluster._levels
        self.arrived = np.zeros((len(self.size), plan.num_workers), bool)
        self.completed = np.full(len(self.size), np.inf)
        self.values: list[np.ndarray | None] = [None] * len(self.size)
        self.parts: list[Any] = [None] * len(self.size)
        self.work: list[Work] = []
        # What may be ready next, and whose: a stream, the start of a worker, the end of an old iteration.
        self.waiting: dict[Any, int] = {}
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        large = sum(leaf.nbytes for leaf in leaves) > _INLINE
        self.leaves = self.ray.put(leaves) if large else leaves
        self.streams: dict[int, Any] = {}

    def run(self) -> ClusterGradient:
        try:
            for worker in range(self.cluster.num_workers):
                self._dispatch(worker)
            self._check()
            while not np.all(np.isfinite(self.completed)):
                self._take()
        finally:
            for worker in self.streams:  # also where it ends with an exception
                remote = self.cluster._remotes[worker]
                if remote is not None:
                    remote.actor.stop.remote(self.cluster.iteration)
        gradient = self.cluster._assemble(self.parts, self.params)
        jax.block_until_ready(gradient)
        seconds = time.monotonic() - self.begin
        return ClusterGradient(gradient, seconds, self.completed, self.arrived, tuple(self.work))

    def _dispatch(self, worker: int) -> None:
        """Give a worker the iteration, or wait for the event after which it can have it."""
        remote = self.cluster._remotes[worker]
        if remote is None:
            return
        if remote.starting is not None:
            self.waiting[remote.starting] = worker
            return
        if remote.unfinished:
            done, remote.unfinished = self.ray.wait(
                remote.unfinished, num_returns=len(remote.unfinished), timeout=0
            )
            if done:
                remote.heard = time.monotonic()
        if len(remote.unfinished) >= _BEHIND:
            self.waiting[remote.unfinished[0]] = worker
            if self.cluster._silent(worker):
                self._lost(worker, "hung")
            return
        if not remote.unfinished:
            remote.heard = time.monotonic()  # nothing was asked of it until now
        finish = None if self.finish is None else self.finish[:, worker]
        call = remote.actor.compute.options(num_returns="streaming")
        stream = call.remote(self.cluster.iteration, self.leaves, finish)
        remote.unfinished.append(stream.completed())
        self.streams[worker] = stream
        self.waiting[stream] = worker

    def _take(self) -> None:
        """Wait for whatever comes next, and take all that is there."""
        waiting = list(self.waiting)
        ready, _ = self.ray.wait(waiting, num_returns=1, timeout=self.cluster.patience / 2)
        if not ready:
            for worker in list(dict.fromkeys(self.waiting.values())):
                remote = self.cluster._remotes[worker]
                if remote is not None and remote.starting is None and self.cluster._silent(worker):
                    self._lost(worker, "hung")
            self._check()
            return
        if len(waiting) > 1:
            ready, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for item in ready:
            if item in self.waiting:  # else lost by an event before
                self._event(item, self.waiting[item])

    def _event(self, item: Any, worker: int) -> None:
        """A message, the end of a stream, a worker that started, or one that caught up."""
        cluster = self.cluster
        if item is not self.streams.get(worker):
            del self.waiting[item]
            remote = cluster._remotes[worker]
            assert remote is not None
            if remote.starting is not None:
                cluster._started(worker)
            self._dispatch(worker)
            self._check()
            return
        try:
            message = self.ray.get(next(self.streams[worker]))
        except StopIteration:
            del self.waiting[item], self.streams[worker]
            self._check()
        except self.ray.exceptions.RayActorError:
            self._lost(worker, "died")
            self._check()
        except self.ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        else:
            remote = cluster._remotes[worker]
            assert remote is not None
            remote.heard, remote.asked = time.monotonic(), None
            self._add(worker, *message)

    def _lost(self, worker: int, what: str) -> None:
        """Forget what was expected of a worker; expect its successor."""
        self.waiting = {item: w for item, w in self.waiting.items() if w != worker}
        self.streams.pop(worker, None)
        self.cluster._lose(worker, what)
        self._dispatch(worker)

    def _add(self, worker: int, iteration: int, block: int, seconds: float, values: np.ndarray) -> None:
        if iteration != self.cluster.iteration:
            return  # an answer to an old question
        self.work.append(Work(iteration, worker, block, seconds))
        if np.isfinite(self.completed[block]) or self.arrived[block, worker]:
            return
        rows = self.values[block]
        if rows is None:
            rows = self.values[block] = np.zeros((self.cluster.num_workers, self.size[block]), values.dtype)
        rows[worker] = values
        self.arrived[block, worker] = True
        if np.sum(self.arrived[block]) < self.needed[block]:
            return
        decodable, part = self.cluster._decoded(block, self.arrived[block], rows)
        if decodable:  # by construction of the codes; if ever not, one message more helps
            self.parts[block], self.values[block] = part, None
            self.completed[block] = time.monotonic() - self.begin

    def _check(self) -> None:
        """WorkersLost where what has come and what may come is too little for a block."""
        coming = np.zeros(self.cluster.num_workers, bool)
        coming[list(self.waiting.values())] = True
        possible = np.sum(self.arrived | coming, axis=1)
        short = ~np.isfinite(self.completed) & (possible < self.needed)
        if short.any():
            level = self.cluster._levels[short].min()
            raise WorkersLost(
                self.cluster.lost, f"a block at level {level} survives no more than {level} of them"
            )
