"""The worker processes as the master sees them: which are there, silent or lost, and who replaces them."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgc_jax.cluster.engine import Programs, actor_class
from bcgc_jax.cluster.worker import Duty
from bcgc_jax.coding.gradients import PyTree

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


class WorkersLost(RuntimeError):
    """Workers are lost, and a block needs them. `workers` are all that are lost, by number.

    `train_on_cluster` plans for those that are left; callers of `Cluster.gradient` can do so with `assign`.
    """

    def __init__(self, workers: Sequence[int], reason: str) -> None:
        self.workers = tuple(workers)
        super().__init__(f"worker {', '.join(map(str, workers))} lost: {reason}")


@dataclasses.dataclass
class Process:
    """One worker's process."""

    ray: Any
    actor: Any
    here: str  # the master's node
    attempts: int = 0  # processes before it that did not finish an iteration
    starting: Any = None  # the reference that is ready once it has loaded, None from then on
    pid: int | None = None
    node: str | None = None
    handle: int | None = None  # of the process itself, whoever has its number later; on Linux, on this node
    unfinished: list[Any] = dataclasses.field(default_factory=list)  # references of its iterations
    heard: float = 0.0  # when it last gave a sign of life
    asked: Any = None  # the reference of a question whether it lives
    asked_at: float = 0.0

    def ask(self) -> None:
        self.asked, self.asked_at = self.actor.answer.remote(), time.monotonic()

    def speaks(self) -> None:
        """Take note of a sign of life."""
        self.asked, self.heard = None, time.monotonic()

    def has_loaded(self) -> None:
        """Take note that it has loaded; raises Ray's error if it has not."""
        self.has_answered(wait=0)
        self.ray.get(self.starting)
        if self.pid is None:
            self.has_answered(wait=None)
        self.starting = None
        self.speaks()

    def has_answered(self, wait: float | None) -> bool:
        """Whether it answers what it was asked within so many seconds, which says who it is."""
        answered, _ = self.ray.wait([] if self.asked is None else [self.asked], timeout=wait)
        if answered:
            with contextlib.suppress(self.ray.exceptions.RayError):  # a dead one shows elsewhere
                node, pid = self.ray.get(self.asked)
                if self.pid is None and node == self.here:
                    self.handle = _handle_of(pid)
                self.node, self.pid = node, pid
        return bool(answered)

    def end(self, *, dead: bool) -> None:
        """No signal is sent to the number of a `dead` process: it may be another's by now."""
        self.ray.kill(self.actor, no_restart=True)
        with contextlib.suppress(ProcessLookupError):  # a stopped process hears no one else
            if self.handle is not None:
                signal.pidfd_send_signal(self.handle, signal.SIGKILL)
            elif self.pid is not None and self.node == self.here and not dead:
                os.kill(self.pid, signal.SIGKILL)
        if self.handle is not None:
            os.close(self.handle)

    def is_silent(self, patience: float) -> bool:
        """Whether it is to be counted as hung: silent, asked, and still silent."""
        now = time.monotonic()
        if self.asked is not None:
            if self.has_answered(wait=0):
                self.speaks()
        elif now - self.heard > patience:
            self.ask()
        if self.starting is not None:
            patience = max(patience, _STARTING if self.pid is None else _LOADING)
        return self.asked is not None and now - self.asked_at > patience

    def awaited(self) -> Any:
        """What must end before it takes an iteration: its start, or an old iteration; None if nothing."""
        if self.starting is not None:
            return self.starting
        if self.unfinished:
            done, self.unfinished = self.ray.wait(
                self.unfinished, num_returns=len(self.unfinished), timeout=0
            )
            if done:
                self.heard = time.monotonic()
            if done and self.attempts:
                with contextlib.suppress(self.ray.exceptions.RayError):
                    self.ray.get(done)
                    self.attempts = 0
        return self.unfinished[0] if len(self.unfinished) >= _BEHIND else None

    def compute(self, call: int, iteration: int, leaves: Any, finish: np.ndarray | None) -> Any:
        """The stream of its messages."""
        if not self.unfinished:
            self.heard = time.monotonic()  # nothing was asked of it until now
        stream = self.actor.compute.options(num_returns="streaming").remote(call, iteration, leaves, finish)
        self.unfinished.append(stream.completed())
        return stream

    def deliver(self, call: int, block: int, subsets: tuple[int, ...]) -> Any:
        """The reference of a sum that it is asked for."""
        return self.actor.deliver.remote(call, block, subsets)

    def stop(self, call: int) -> None:
        self.actor.stop.remote(call)


def _handle_of(pid: int) -> int | None:
    """None where the system has no such handles, and of a process that is gone."""
    with contextlib.suppress(AttributeError, OSError):
        return os.pidfd_open(pid)
    return None


class Processes:
    """N processes, by the number of the worker; None for one that is lost, or not yet started.

    `faults` are all that happened; `why` is what Ray says of the worker lost last.
    """

    def __init__(
        self,
        ray: Any,
        num_workers: int,
        *,
        replace: bool,
        patience: float,
        num_gpus: float,
        programs: Programs,
    ) -> None:
        self.ray, self.replace, self.patience = ray, replace, patience
        self.faults: list[Fault] = []
        self.why = ""
        self.duty: Duty | None = None
        self._duty_ref: Any = None
        self._subsets: list[Any] = []
        self._num_gpus, self._programs = num_gpus, programs
        self._actor = actor_class(ray)
        self._here = ray.get_runtime_context().get_node_id()
        self._all: list[Process | None] = [None] * num_workers
        self._check_room(num_workers)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, worker: int) -> Process | None:
        return self._all[worker]

    @property
    def lost(self) -> tuple[int, ...]:
        """Workers that are lost and not being replaced."""
        return tuple(w for w, process in enumerate(self._all) if process is None and self.duty is not None)

    @property
    def pids(self) -> tuple[int | None, ...]:
        return tuple(None if p is None or p.starting is not None else p.pid for p in self._all)

    def resize(self, num_workers: int) -> None:
        """This many from the next `assign` on; ValueError where there is no room for them."""
        living = [process for process in self._all if process is not None]
        self._check_room(num_workers - len(living))
        for process in living[num_workers:]:
            process.end(dead=False)
        self._all = [*living[:num_workers], *[None] * (num_workers - len(living))]
        self.duty = None

    def _check_room(self, more: int) -> None:
        """ValueError where Ray would wait for free CPUs or GPUs without a word."""
        needs = {"CPU": float(more), "GPU": more * self._num_gpus}
        begin = time.monotonic()
        while more > 0:
            free = self.ray.available_resources()
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

    def assign(self, duty: Duty, subsets: Sequence[PyTree]) -> None:
        """Give all their duty and data, and start those that are not there; they load meanwhile."""
        self._duty_ref = self.ray.put(duty)
        self._subsets = [self.ray.put(jax.tree.map(np.asarray, data)) for data in subsets]
        self.duty = duty
        for worker, process in enumerate(self._all):
            if process is None:
                self._spawn(worker)
            else:
                self._load(worker, process)

    def wait_until_loaded(self, iteration: int) -> None:
        """Until nobody starts any more; WorkersLost if some cannot."""
        while starting := {
            p.starting: w for w, p in enumerate(self._all) if p is not None and p.starting is not None
        }:
            ready, _ = self.ray.wait(list(starting), num_returns=1, timeout=self.patience / 2)
            for ref in ready:
                self.has_loaded(starting[ref], iteration)
            for worker in () if ready else starting.values():
                if self.is_silent(worker):
                    self.lose(worker, "hung", iteration)
        if self.lost:
            raise WorkersLost(self.lost, f"their processes end, or are silent, while they start{self.why}")

    def has_loaded(self, worker: int, iteration: int) -> None:
        """Take note that a worker has loaded; if its process ended instead, it is lost.

        Raises what the loss raised.
        """
        process = self._all[worker]
        assert process is not None
        try:
            process.has_loaded()
        except self.ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except self.ray.exceptions.RayError as error:
            self.lose(worker, "died", iteration, error)

    def is_silent(self, worker: int) -> bool:
        process = self._all[worker]
        return process is not None and process.is_silent(self.patience)

    def lose(self, worker: int, what: str, iteration: int, error: Exception | None = None) -> None:
        """End what is left of a worker, and start another in its place if that is wanted."""
        process = self._all[worker]
        assert process is not None
        self.faults.append(Fault(iteration, worker, what))
        self.why = "" if error is None else f" ({str(error).splitlines()[0]})"
        process.end(dead=what == "died")
        self._all[worker] = None
        if self.replace and process.attempts < _ATTEMPTS:
            self._spawn(worker, process.attempts + 1)
            self.faults.append(Fault(iteration, worker, "replaced"))

    def end(self) -> None:
        for process in self._all:
            if process is not None:
                process.end(dead=False)
        self._all = []

    def _spawn(self, worker: int, attempts: int = 0) -> None:
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        if self._num_gpus:  # JAX would take three quarters of the memory for each
            options |= {
                "num_gpus": self._num_gpus,
                "runtime_env": {"env_vars": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}},
            }
        process = Process(self.ray, self._actor.options(**options).remote(), self._here, attempts)
        process.ask()
        self._all[worker] = process
        self._load(worker, process)

    def _load(self, worker: int, process: Process) -> None:
        assert self.duty is not None
        held = {j: self._subsets[j] for j in self.duty.plan.held(worker)}
        process.starting = process.actor.load.remote(self._duty_ref, worker, held, self._programs)
