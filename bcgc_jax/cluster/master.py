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
from bcgc_jax.coding.codes import decoding_weights
from bcgc_jax.coding.gradients import (
    CodingPlan,
    Loss,
    PyTree,
    assemble_gradient,
    decode_block,
)

# Larger arguments of a call are put into the store once, instead of being sent to each worker.
_INLINE = 2**16
# Unfinished iterations a worker may be behind before it gets no more; its next one then comes when it is
# done with these. Processes that end one after another, none of them with an iteration done, before a worker
# is given up. Seconds for a new process to be there, for one that compiles to answer (which may hold Python
# for long), and for the CPUs of old ones to be free.
_BEHIND, _ATTEMPTS = 2, 3
_STARTING, _LOADING, _FREEING = 120.0, 30.0, 10.0


class Fault(NamedTuple):
    """What happened to a `worker` in an `iteration`, or after it: "died", "hung", "replaced"."""

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
    """Workers are lost, and a block needs them. `workers` are all that are lost, by number.

    `train_on_cluster` plans for those that are left; callers of `Cluster.gradient` can do so with `assign`.
    """

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
    attempts: int = 0  # processes before it that did not finish an iteration


class Cluster:
    r"""N worker processes, and the gradients that they compute together.

    Args:
      num_workers: N processes; Ray is started on this machine unless there is an `address` of a cluster.
      replace: whether a lost worker is replaced; else `gradient` raises `WorkersLost` as soon as a block
        needs it, and `lost` names it before.
      patience: seconds of silence before a worker is asked whether it lives, and for its answer. A worker
        that is only slow answers, however long its block takes.
      store_bytes: of the data and the parameters, for the size of Ray's store.
      num_gpus: of each worker, a share if less than 1; workers without one compute on the CPU.

    A context manager: at its end all processes are gone. `faults` are those of all iterations.

    Raises ImportError without Ray, ConnectionError where there is no cluster at the address, ValueError where
    it has too few free CPUs: each worker takes one, and on this machine alone they share what there is.

    >>> from bcgc_jax.coding.gradients import coding_plan, split_unevenly
    >>> data, params = np.arange(12.0, dtype=np.float32).reshape(4, 3), jnp.zeros(3)
    >>> plan = coding_plan(jax.random.key(0), params, [1, 2])  # two coordinates survive one of two workers
    >>> with Cluster(2) as cluster:
    ...     cluster.assign(lambda p, batch: jnp.mean(batch @ p), plan, params, split_unevenly(data, 2))
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
            raise ValueError("a cluster needs at least one worker, and patience of more than 0 seconds")
        self.replace, self.patience = replace, patience
        self.iteration = 0
        self._calls = 0
        self._why = ""  # what Ray says of the worker lost last
        self._num_gpus = num_gpus
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
        try:
            self._check_room(num_workers)
        except ValueError:
            self.close()
            raise

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
        """Have this many workers from the next `assign` on, lost ones replaced.

        Raises ValueError where the Ray cluster has no room for them.
        """
        if num_workers < 1:
            raise ValueError(f"a cluster needs at least one worker, got {num_workers}")
        remotes = [remote for remote in self._remotes if remote is not None]
        self._check_room(num_workers - len(remotes))
        for remote in remotes[num_workers:]:
            self._end(remote)
        self._remotes = [*remotes[:num_workers], *[None] * (num_workers - len(remotes))]
        self._duty = None

    def _check_room(self, more: int) -> None:
        """ValueError where Ray would wait for free CPUs or GPUs without a word."""
        needs = {"CPU": float(more), "GPU": more * self._num_gpus}
        begin = time.monotonic()
        while more > 0:
            free = self._ray.available_resources()
            short = [name for name, needed in needs.items() if free.get(name, 0.0) < needed]
            if not short:
                return
            if time.monotonic() - begin > _FREEING:  # those of workers that have just ended come back
                name = short[0]
                raise ValueError(
                    f"the Ray cluster has {free.get(name, 0.0):g} free {name}s, too few for {more} more "
                    f"workers, who need {needs[name]:g}: take fewer, or add machines to it"
                )
            time.sleep(0.1)

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
        self.resize(plan.num_workers)  # first: what it refuses leaves the workers with what they had
        host: tuple[CodingPlan, PyTree] = jax.tree.map(np.asarray, (plan, params))
        x64 = bool(jnp.result_type(float) == jnp.float64)
        duty = Duty(loss, host[0], host[1], weights, batch_size, seed, x64)
        self._duty_ref = self._ray.put(duty)
        self._subsets = [self._ray.put(jax.tree.map(np.asarray, data)) for data in subsets]
        self._duty = duty
        for worker, remote in enumerate(self._remotes):
            if remote is None:
                self._spawn(worker)
            else:
                self._load(worker, remote)
        self._compile(host[0], params)
        while starting := {
            r.starting: w for w, r in enumerate(self._remotes) if r is not None and r.starting is not None
        }:
            ready, _ = self._ray.wait(list(starting), num_returns=1, timeout=self.patience / 2)
            for ref in ready:
                self._started(starting[ref])
            for worker in () if ready else starting.values():
                if self._silent(worker):
                    self._lose(worker, "hung")
        if self.lost:
            raise WorkersLost(self.lost, f"their processes end, or are silent, while they start{self._why}")
        self._collect(params, None)  # Ray's first call of a method takes longer than the others

    def gradient(
        self, params: PyTree, finish: np.ndarray | None = None, *, iteration: int | None = None
    ) -> ClusterGradient:
        """The gradient of the loss at `params`.

        With `finish`, `[B, N]`, worker w sends block b no earlier than that many seconds after it began:
        slowness on purpose. The number of the `iteration`, by default one more than the last, is that of the
        records, and mini-batches are drawn with it: the same number, the same samples.

        Raises WorkersLost where a block cannot be completed any more, and what the loss raised.
        """
        self.iteration = self.iteration + 1 if iteration is None else iteration
        return self._collect(params, finish)

    def _collect(self, params: PyTree, finish: np.ndarray | None) -> ClusterGradient:
        self._calls += 1
        return _Collection(self, self.plan, params, finish).run()

    def _compile(self, plan: CodingPlan, params: PyTree) -> None:
        """The master's side of the arithmetic."""
        dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]

        def decoded(encoding: Array, arrived: Array, values: Array, block: int) -> tuple[Array, Any]:
            weights, decodable = decoding_weights(encoding, arrived)
            ends = np.cumsum([p.stop - p.start for p in plan.blocks[block].pieces])[:-1]
            with jax.enable_x64(True):
                pieces = [list(rows) for rows in jnp.split(values, ends.tolist(), axis=1)]
            return decodable, decode_block(plan.blocks[block], plan.scaling, weights, pieces, dtypes)

        self._decode = jax.jit(decoded, static_argnames="block")
        self._assemble = jax.jit(lambda parts, like: assemble_gradient(plan.blocks, parts, like))
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
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        if self._num_gpus:  # JAX would take three quarters of the memory for each
            options |= {
                "num_gpus": self._num_gpus,
                "runtime_env": {"env_vars": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}},
            }
        remote = _Remote(self._actor.options(**options).remote(), None, attempts=attempts)
        remote.asked, remote.asked_at = remote.actor.answer.remote(), time.monotonic()
        self._remotes[worker] = remote
        self._load(worker, remote)

    def _load(self, worker: int, remote: _Remote) -> None:
        held = {j: self._subsets[j] for j in self.plan.held(worker)}
        remote.starting = remote.actor.load.remote(self._duty_ref, worker, held)

    def _started(self, worker: int) -> None:
        """Take note that a worker has loaded; if its process ended instead, it is lost."""
        remote = self._remotes[worker]
        assert remote is not None
        try:
            self._ray.get(remote.starting)
            if remote.pid is None:
                remote.node, remote.pid = self._ray.get(remote.asked)
        except self._ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except self._ray.exceptions.RayError as error:
            self._lose(worker, "died", error)
        else:
            remote.starting, remote.asked, remote.heard = None, None, time.monotonic()

    def _lose(self, worker: int, what: str, error: Exception | None = None) -> None:
        """End what is left of a worker, and start another in its place if that is wanted."""
        remote = self._remotes[worker]
        assert remote is not None
        self.faults.append(Fault(self.iteration, worker, what))
        self._why = "" if error is None else f" ({str(error).splitlines()[0]})"
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
                with contextlib.suppress(self._ray.exceptions.RayError):  # a dead one shows elsewhere
                    remote.node, remote.pid = self._ray.get(remote.asked)
                remote.asked, remote.heard = None, now
        elif now - remote.heard > self.patience:
            remote.asked, remote.asked_at = remote.actor.answer.remote(), now
        patience = self.patience
        if remote.starting is not None:
            patience = max(patience, _STARTING if remote.pid is None else _LOADING)
        return remote.asked is not None and now - remote.asked_at > patience


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
                    remote.actor.stop.remote(self.cluster._calls)
        gradient = self.cluster._assemble(self.parts, self.params)
        jax.block_until_ready(gradient)
        seconds = time.monotonic() - self.begin
        return ClusterGradient(gradient, seconds, self.completed, self.arrived, tuple(self.work))

    def _dispatch(self, worker: int) -> None:
        """Give a worker the iteration, or wait for the event after which it can have it."""
        remote = self.cluster._remotes[worker]
        if remote is None:
            return
        if remote.starting is None and remote.unfinished:
            done, remote.unfinished = self.ray.wait(
                remote.unfinished, num_returns=len(remote.unfinished), timeout=0
            )
            if done:
                remote.heard = time.monotonic()
            if done and remote.attempts:
                with contextlib.suppress(self.ray.exceptions.RayError):
                    self.ray.get(done)
                    remote.attempts = 0
        if remote.starting is not None or len(remote.unfinished) >= _BEHIND:
            event = remote.unfinished[0] if remote.starting is None else remote.starting
            self.waiting[event] = worker
            if self.cluster._silent(worker):
                self._lost(worker, "hung")
            return
        if not remote.unfinished:
            remote.heard = time.monotonic()  # nothing was asked of it until now
        finish = None if self.finish is None else self.finish[:, worker]
        call = remote.actor.compute.options(num_returns="streaming")
        stream = call.remote(self.cluster._calls, self.cluster.iteration, self.leaves, finish)
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
                if remote is not None and self.cluster._silent(worker):
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
        except self.ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except self.ray.exceptions.RayError as error:  # it died, or its messages are lost
            self._lost(worker, "died", error)
            self._check()
        else:
            remote = cluster._remotes[worker]
            assert remote is not None
            remote.heard, remote.asked = time.monotonic(), None
            self._add(worker, *message)

    def _lost(self, worker: int, what: str, error: Exception | None = None) -> None:
        """Forget what was expected of a worker; expect its successor."""
        self.waiting = {item: w for item, w in self.waiting.items() if w != worker}
        self.streams.pop(worker, None)
        self.cluster._lose(worker, what, error)
        self._dispatch(worker)

    def _add(self, worker: int, block: int, seconds: float, values: np.ndarray) -> None:
        self.work.append(Work(self.cluster.iteration, worker, block, seconds))
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
                self.cluster.lost,
                f"a block at level {level} survives no more than {level} of them{self.cluster._why}; plan "
                "for the workers left, as train_on_cluster does, or let lost ones be replaced",
            )
