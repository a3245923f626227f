"""Compute coded gradients with Ray actors, one for each worker, in your training loop.

Your code has the loop, the optimiser, the checkpoints and the log. The extra `cluster`
installs Ray.
"""

import contextlib
import copyreg
import os
import signal
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax._extras import to_install
from bcgc_jax.coding.codes import decoding_weights
from bcgc_jax.coding.delays import InjectedDelay
from bcgc_jax.coding.gradients import CodingPlan, assemble, num_samples
from bcgc_jax.coding.losses import Loss, PyTree, check_loss, check_params
from bcgc_jax.coding.worker import BlockWorker, places_of
from bcgc_jax.traces.trace import Trace

# Seconds between two checks for silent workers, and before a worker that Ray restarts
# is called again.
_LOOK = 0.1
# Maximum number of unfinished calls of a worker. Each call keeps the parameters of its
# step in memory.
_MOST_CALLS = 2
# Seconds after which processes that have not ended are killed.
_ENDING = 5.0

# A loss from the main script is pickled by value, but JAX does not define how a
# `custom_vjp` is unpickled.
copyreg.pickle(jax.custom_vjp, lambda function: (_new_custom_vjp, (), vars(function)))  # type: ignore[arg-type]


def _new_custom_vjp() -> Any:
    return object.__new__(jax.custom_vjp)


class WorkersLost(RuntimeError):
    """Signal that a step cannot end because workers have ended or were silent.

    Attributes:
      workers: Numbers of these workers.
    """

    def __init__(self, workers: Sequence[int], timeout: float) -> None:
        names = ", ".join(map(str, workers))
        super().__init__(
            "the step needs workers that have ended, or have sent nothing for "
            f"{timeout:g} s: {names}. Ray restarts workers that have ended, so repeat "
            "the step. If a worker needs more time to start, to compile, or to compute "
            "a block, increase `timeout`."
        )
        self.workers = tuple(workers)


class Arrival(NamedTuple):
    """A message that has arrived before its block could be decoded.

    Attributes:
      step: Number of the step.
      worker: Number of the worker.
      block: Number of the block.
      seconds: Seconds from the worker's start of this step to the end of the block.
    """

    step: int
    worker: int
    block: int
    seconds: float


class CodedWorkers:
    r"""Compute coded gradients with worker processes, despite stragglers.

    The gradient is Σ_j w_j ∇f_j(x) over all N data subsets. For a block at level n, a
    worker sends a weighted sum of its gradients on n + 1 subsets. The block is decoded
    from any N - n messages. Each worker is a Ray actor.

    Args:
      loss: Function (params, batch), or (params, batch, key), that returns the loss. If
        `plan.mean`, the loss must be a mean over the samples, otherwise their sum.
      plan: Tasks of all workers: the result of `coding_plan`, or the plan of
        `training_scheme`.
      subsets: The N data subsets: a list of pytrees of arrays `[m_j, …]`, or a pytree
        of arrays `[N, m, …]`, for example the result of `split_batch`.
      address: HOST:PORT of a Ray cluster to join. By default, Ray is started on this
        machine, unless this process already uses Ray.
      timeout: Maximum time in seconds without a message of a worker. It must be longer
        than a worker needs to start, to compile, and to compute any block. Defaults to
        60.
      options: Options of the Ray actors, such as {"num_gpus": 0.25}. By default, an
        actor reserves no CPU, and computes on the CPU.
      delay: Injected delay that slows the workers, for studies. Defaults to no delay.
      seed: Seed of the loss's PRNG keys. Defaults to 0.

    Attributes:
      arrivals: List of all messages that arrived before their block could be decoded,
        in the order of their arrival.

    Raises:
      ImportError: If Ray is not installed.
      ValueError: If `plan` has no code, or `subsets` do not fit it.
      WorkersLost: If a worker does not start within `timeout` seconds.

    Source: Wang, Cui, Li, Zou, Xiong, GLOBECOM 2021, section II.

    >>> from bcgc_jax.coding import coding_plan, split_batch
    >>> data, params = np.arange(12.0, dtype=np.float32).reshape(4, 3), jnp.zeros(3)
    >>> plan = coding_plan(jax.random.key(0), params, [1, 2])
    >>> loss = lambda p, batch: jnp.mean(batch @ p)
    >>> with CodedWorkers(loss, plan, split_batch(data, 2)) as workers:
    ...     value, gradient = workers.value_and_grad(params)
    >>> gradient.tolist()
    [4.5, 5.5, 6.5]
    """

    def __init__(
        self,
        loss: Loss,
        plan: CodingPlan,
        subsets: PyTree | list[PyTree],
        *,
        address: str | None = None,
        timeout: float = 60.0,
        options: Mapping[str, Any] | None = None,
        delay: InjectedDelay | None = None,
        seed: int = 0,
    ) -> None:
        self.plan = _checked(plan)
        parts = _parts(subsets, plan.num_workers)
        self._loss = loss
        self._sample = jax.tree.map(lambda x: x[:1], parts[0])
        self.timeout = timeout
        self._delay = delay
        self.arrivals: list[Arrival] = []
        self.step = -1
        # Workers and steps of the message streams that have not ended.
        self.streams: dict[Any, tuple[int, int]] = {}
        # Process ids of the workers on this machine.
        self.pids: dict[int, int] = {}
        self._is_checked = False
        self.decoder = Decoder(plan)
        self.actors: list[Any] = []
        self._ray, self._is_own = _started(address, plan.num_workers)
        try:
            self.actors = self._new_actors(loss, parts, seed, dict(options or {}))
            self._wait_for_start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "CodedWorkers":
        return self

    def __exit__(self, *raised: Any) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, and also Ray if this object has started it."""
        for actor in self.actors:
            self._ray.kill(actor)
        self.actors = []
        if self._is_own:
            self._ray.shutdown()
            self._is_own = False
        _kill_left(self.pids.values())
        self.pids.clear()

    def value_and_grad(self, params: PyTree) -> tuple[jax.Array, PyTree]:
        """Compute the loss and its gradient over all samples.

        The call returns as soon as all blocks can be decoded.

        Args:
          params: Parameters, a pytree of arrays.

        Returns:
          The loss, and the gradient with the structure and dtypes of `params`.

        Raises:
          WorkersLost: If workers have ended, or were silent for `timeout` seconds, and
            the other workers do not suffice. The call can be repeated.
          ValueError: If the loss or the parameters are not suitable for training.
        """
        if not self._is_checked:
            check_params(params)
            check_loss(self._loss, params, self._sample, self.plan.mean)
            self._is_checked = True
        self.step += 1
        step = _Step(self, params)
        try:
            messages = step.messages()
        finally:
            # Workers that still compute then stop after their current pass.
            for actor in self.actors:
                actor.begin.remote(self.step + 1)
        return self.decoder.value_and_grad(messages, params)

    def trace(self) -> Trace:
        """Return the arrivals as a timing log, for example for `advise`.

        A worker's time in a step is the time of its last message. If later blocks of
        the worker are missing, its time is censored.
        """
        last = {(a.step, a.worker): a for a in self.arrivals}
        rows = [last[place] for place in sorted(last)]
        steps, step = np.unique([row.step for row in rows], return_inverse=True)
        workers, worker = np.unique([row.worker for row in rows], return_inverse=True)
        return Trace(
            steps.astype(str),
            workers.astype(str),
            step,
            worker,
            np.array([row.seconds for row in rows]),
            np.array([row.block < len(self.plan.blocks) - 1 for row in rows]),
        )

    def _new_actors(
        self, loss: Loss, parts: list[PyTree], seed: int, options: dict[str, Any]
    ) -> list[Any]:
        """Start the actors. Each one later reads only the subsets that it needs."""
        ray = self._ray
        options = {"num_cpus": 0, "max_restarts": -1} | options
        if not options.get("num_gpus"):
            options.setdefault("runtime_env", {"env_vars": {"JAX_PLATFORMS": "cpu"}})
        sizes = np.array([num_samples(part) for part in parts], float)
        weights = np.ones(len(parts))
        if self.plan.mean:
            weights = sizes * len(sizes) / sizes.sum()
        shared = [ray.put(part) for part in parts]
        common = ray.put(
            (
                loss,
                self.plan,
                weights,
                self._delay,
                seed,
                jax.config.read("jax_enable_x64"),
            )
        )
        # Two threads: a worker can be told that a step is over while it computes.
        groups = {"heard": 1, "work": 1}
        actor = ray.remote(concurrency_groups=groups)(_Actor).options(**options)
        workers = range(self.plan.num_workers)
        # A worker that Ray restarts reads them again.
        self.sources = [
            (common, {j: shared[j] for j in self.plan.held(index)}) for index in workers
        ]
        return [actor.remote(index) for index in workers]

    def _wait_for_start(self) -> None:
        """Wait up to `timeout` seconds until all processes have started."""
        started = {actor.begin.remote(0): w for w, actor in enumerate(self.actors)}
        ready, missing = self._ray.wait(
            [*started], num_returns=len(started), timeout=self.timeout
        )
        if missing:
            workers = [started[reference] for reference in missing]
            raise WorkersLost(workers, self.timeout)
        for reference in ready:
            self.note_process(started[reference], *self._ray.get(reference))

    def note_process(self, worker: int, node: str, pid: int) -> None:
        """Remember the process id of a worker if it runs on this machine."""
        self.pids.pop(worker, None)
        if node == self._ray.get_runtime_context().get_node_id():
            self.pids[worker] = pid


class Messages(NamedTuple):
    """Messages `[size]` of a block, by worker, and their decoding weights, `[N]`."""

    by_worker: Mapping[int, np.ndarray]
    weights: np.ndarray


class Decoder:
    """Decode the loss and the gradient from the workers' messages."""

    def __init__(self, plan: CodingPlan) -> None:
        self._plan = plan
        self._encodings = [np.asarray(code.encoding) for code in plan.codes]
        self._needed = plan.rule.awaited(None)

    def weights(self, block: int, workers: Collection[int]) -> np.ndarray | None:
        """Return the weights that decode a block from the messages of `workers`, `[N]`.

        Return None if these messages do not suffice.
        """
        if len(workers) < self._needed[block]:
            return None
        arrived = np.isin(np.arange(self._plan.num_workers), [*workers])
        decoding = decoding_weights(self._encodings[block], arrived)
        return np.asarray(decoding.weights) if bool(decoding.decodable) else None

    def value_and_grad(
        self, messages: Sequence[Messages], params: PyTree
    ) -> tuple[jax.Array, PyTree]:
        """Decode the loss and the gradient from the messages of all blocks."""
        plan = self._plan
        leaves = jax.tree.leaves(params)
        shapes = tuple(np.shape(leaf) for leaf in leaves)
        dtypes = tuple(jnp.result_type(leaf) for leaf in leaves)
        value = 0.0
        parts = []
        for block, (sent, weights) in enumerate(messages):
            total = plan.scaling * sum(
                weights[worker] * values.astype(np.float64)
                for worker, values in sent.items()
                if weights[worker]
            )
            ends = np.cumsum(
                [p.stop - p.start for p in places_of(plan, block, shapes, dtypes)]
            )
            pieces = np.split(total, ends[:-1])
            if len(pieces) > len(plan.blocks[block].pieces):
                value += float(pieces.pop()[0])
            kinds = [dtypes[piece.leaf] for piece in plan.blocks[block].pieces]
            parts.append(
                [piece.astype(kind) for piece, kind in zip(pieces, kinds, strict=True)]
            )
        gradient = assemble(plan.blocks, parts, params, np)
        return jnp.asarray(value, jnp.result_type(float)), jax.device_put(gradient)


class _Step:
    """Call all workers in a step, and collect messages until all blocks decode."""

    def __init__(self, workers: CodedWorkers, params: PyTree) -> None:
        self._workers = workers
        self._ray = workers._ray
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        tree = jax.tree.unflatten(jax.tree.structure(params), leaves)
        self._params = self._ray.put(tree)
        self._sent: list[dict[int, np.ndarray]] = [{} for _ in workers.plan.blocks]
        # Weights of the blocks that can already be decoded.
        self._weights: dict[int, np.ndarray] = {}
        now = time.monotonic()
        self._heard = dict.fromkeys(range(workers.plan.num_workers), now)
        # Workers that must still be called, and the earliest time of the call.
        self._due = dict.fromkeys(self._heard, now)
        self._done: set[int] = set()

    def messages(self) -> list[Messages]:
        """Return the messages of each block as soon as all blocks can be decoded."""
        self._look()
        while len(self._weights) < len(self._sent):
            streams = [*self._workers.streams]
            ready: list[Any] = []
            if streams:
                ready, _ = self._ray.wait(streams, num_returns=1, timeout=_LOOK)
            else:
                time.sleep(_LOOK)
            for stream in ready:
                self._take(stream)
            self._look()
        return [Messages(sent, self._weights[b]) for b, sent in enumerate(self._sent)]

    def _ask(self, worker: int) -> None:
        actor = self._workers.actors[worker]
        step = self._workers.step
        stream = actor.messages.options(num_returns="streaming").remote(
            step, [self._params], self._workers.sources[worker]
        )
        self._workers.streams[stream] = worker, step

    def _take(self, stream: Any) -> None:
        """Receive the next message of a worker, or note that its stream has ended."""
        worker, step = self._workers.streams[stream]
        is_now = step == self._workers.step
        try:
            block, seconds, values, *process = self._ray.get(next(stream))
        except StopIteration:
            del self._workers.streams[stream]
            if is_now:
                self._done.add(worker)
            return
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError:  # its process has ended
            del self._workers.streams[stream]
            if is_now:
                self._due[worker] = time.monotonic() + _LOOK
            return
        self._workers.note_process(worker, *process)
        self._heard[worker] = time.monotonic()
        if is_now and block not in self._weights:
            self._sent[block][worker] = values
            self._workers.arrivals.append(Arrival(step, worker, block, seconds))
            weights = self._workers.decoder.weights(block, self._sent[block])
            if weights is not None:
                self._weights[block] = weights

    def _look(self) -> None:
        """Call the workers that are due. Check whether the other workers suffice."""
        now = time.monotonic()
        unfinished = Counter(worker for worker, _ in self._workers.streams.values())
        for worker in [w for w, due in self._due.items() if due <= now]:
            if unfinished[worker] < _MOST_CALLS:
                del self._due[worker]
                self._ask(worker)
        timeout = self._workers.timeout
        lost = {
            worker
            for worker, heard in self._heard.items()
            if worker not in self._done and now - heard > timeout
        }
        if not lost:
            return
        hopeful = self._heard.keys() - lost - self._done
        for block, sent in enumerate(self._sent):
            able = hopeful.union(sent)
            if (
                block not in self._weights
                and self._workers.decoder.weights(block, able) is None
            ):
                raise WorkersLost(sorted(lost), timeout)


class _Actor:
    """A worker in its own Ray process."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._worker: BlockWorker | None = None
        self._delay: InjectedDelay | None = None
        self._newest = 0

    def begin(self, step: int) -> tuple[str, int]:
        """Note that a step has begun, so all earlier steps are over.

        Return the Ray node and the process id of this worker.
        """
        import ray

        self._newest = max(self._newest, step)
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def messages(
        self, step: int, params: Sequence[Any], source: tuple[Any, Mapping[int, Any]]
    ) -> Iterator[Any]:
        """Yield (block, seconds, message, node, process id) for the blocks of a step.

        Args:
          step: Number of the step.
          params: List with a reference to the parameters.
          source: References to the common arguments of all workers, and to the subsets
            of this worker. Only a new process reads them.
        """
        import ray

        if self._newest > step:
            return
        if self._worker is None:
            self._worker = self._new_worker(*source)
        begun = time.perf_counter()
        ends = None
        if self._delay is not None:
            ends = self._delay.ends(step)[:, self._index]
        sent = self._worker.messages(
            ray.get(params[0]),
            step,
            goes_on=lambda: self._newest <= step,
            wait=lambda block, share: _sleep(begun, ends, block, share),
        )
        for block, values in sent:
            node = ray.get_runtime_context().get_node_id()
            yield block, time.perf_counter() - begun, values, node, os.getpid()

    def _new_worker(self, common: Any, subsets: Mapping[int, Any]) -> BlockWorker:
        import ray

        loss, plan, weights, self._delay, seed, is_wide = ray.get(common)
        jax.config.update("jax_enable_x64", is_wide)
        parts = {number: ray.get(part) for number, part in subsets.items()}
        return BlockWorker(loss, plan, self._index, parts, weights, seed)


def _sleep(begun: float, ends: np.ndarray | None, block: int, share: float) -> None:
    """Sleep until the fraction `share` of a block ends in the delay's model."""
    if ends is not None:
        before = ends[block - 1] if block else 0.0
        until = begun + before + share * (ends[block] - before)
        time.sleep(max(0.0, until - time.perf_counter()))


# Each group has one thread: `messages` runs one call at a time, and `begin` does not
# wait for it.
_Actor.begin.__ray_concurrency_group__ = "heard"  # type: ignore[attr-defined]
_Actor.messages.__ray_concurrency_group__ = "work"  # type: ignore[attr-defined]


def _started(address: str | None, num_workers: int) -> tuple[Any, bool]:
    """Return Ray, and whether this call has started or joined it."""
    # Ray must not send usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            f"`CodedWorkers` needs Ray, which is not installed: {to_install('cluster')}"
        ) from error
    if ray.is_initialized():
        if address is not None:
            raise ValueError(
                f"this process already uses Ray, so it cannot join {address}. Call "
                "`ray.shutdown()` first, or remove `address`."
            )
        return ray, False
    options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address is None:
        options |= {"num_cpus": num_workers, "include_dashboard": False}
    with warnings.catch_warnings():
        # Ray's child processes start new programs, so a fork of this one is harmless.
        warnings.filterwarnings("ignore", "os.fork.. was called", RuntimeWarning)
        ray.init(address or "local", **options)
    return ray, True


def _checked(plan: Any) -> CodingPlan:
    if not isinstance(plan, CodingPlan):
        raise ValueError(
            "`plan` must come from `coding_plan` or `training_scheme`, got "
            f"{type(plan).__name__}. For work sharing, use "
            "`bcgc_jax.balancing.dispatch`."
        )
    if not plan.coded:
        raise ValueError(
            "`plan` is a schedule without a code, which `CodedWorkers` cannot compute. "
            "Train with `bcgc_jax.coding.train` on a simulated clock, or share work "
            "with `bcgc_jax.balancing.dispatch`."
        )
    return plan


def _parts(subsets: PyTree | list[PyTree], num_workers: int) -> list[PyTree]:
    """Return the list of the subsets, as NumPy arrays."""
    if isinstance(subsets, list) and len(subsets) == num_workers:
        return [jax.tree.map(np.asarray, part) for part in subsets]
    if any(len(leaf) != num_workers for leaf in jax.tree.leaves(subsets)):
        raise ValueError(
            f"the plan has {num_workers} workers, but there is another number of "
            f"subsets. Pass {num_workers} subsets, for example "
            f"`split_batch(batch, {num_workers})`."
        )
    whole = jax.tree.map(np.asarray, subsets)
    return [jax.tree.map(lambda x, j=j: x[j], whole) for j in range(num_workers)]


def _kill_left(pids: Iterable[int]) -> None:
    """Kill processes that do not end by themselves, such as stopped ones."""
    pids = set(pids)
    until = time.monotonic() + _ENDING
    while (pids := {pid for pid in pids if _is_actor(pid)}) and (
        time.monotonic() < until
    ):
        time.sleep(0.05)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_actor(pid: int) -> bool:
    """Whether a process id still belongs to a Ray actor."""
    with contextlib.suppress(OSError):
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
