"""The worker processes as the master sees them: there, silent, lost, or replaced."""

import contextlib
import dataclasses
import os
import signal
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bcgc_jax.cluster import signals
from bcgc_jax.cluster.chunks import Place
from bcgc_jax.cluster.engine import Made, actor_class, cause_of, reason_of
from bcgc_jax.cluster.message_book import Decoder
from bcgc_jax.cluster.rounds import CodedRound, Round
from bcgc_jax.cluster.shared_round import SharedRound
from bcgc_jax.cluster.worker import NOTE, Duty
from bcgc_jax.coding.pace import Pace
from bcgc_jax.handout.coordinator import Coordinator
from bcgc_jax.steps.ledger import Roster

# Processes that end one after another, none of them with an iteration done, before a
# worker is given up.
_ATTEMPTS = 3
# Seconds at most for a new process to be there: else there is no other.
_STARTING = 120.0
# For one that compiles to answer: it may hold Python for long.
_LOADING = 30.0
# For the CPUs of old ones to be free.
_FREEING = 10.0
# Calls of earlier iterations with which a worker gets nothing of this one.
_UNFINISHED = 2
# A successor may take so many times as long as the slowest took to be ready.
_SLOWER = 3.0
_NO_ROOM = "the nodes that are left have no room for it"


class Fault(NamedTuple):
    """What happened to a `worker` in an `iteration`, or after it, and the `reason`, if
    known.

    "died": its process ended; "hung": it is silent; "failed": it raised what not all
    workers raise; "replaced": by another process.
    """

    iteration: int
    worker: int
    what: str
    reason: str = ""


class WorkersLost(RuntimeError):
    """Workers that a block needs are lost; `workers` are all that are."""

    def __init__(self, workers: Sequence[int], reason: str) -> None:
        self.workers = tuple(workers)
        super().__init__(f"worker {', '.join(map(str, workers))} lost: {reason}")


@dataclasses.dataclass
class Assignment:
    """A duty, where it and the data lie, and the plans that workers keep compiled
    beside it.

    So many workers are `ready` for it, and calls that make others so `pending`.
    """

    number: int
    duty: Duty[Any]
    reference: Any
    subsets: Mapping[Any, Any]  # by the number of a subset, or by chunk
    kept: tuple[int, ...] = ()
    ready: int = 0
    pending: list[Any] = dataclasses.field(default_factory=list)
    coordinator: Coordinator | None = None  # of work sharing
    # The workers of work sharing, after the last iteration.
    roster: Roster | None = None
    _decoder: Decoder | None = None

    @property
    def is_made(self) -> bool:
        """Whether the workers make their data."""
        return any(isinstance(data, Made) for data in self.subsets.values())

    def decoder(self) -> Decoder | None:
        """The decoder of the plan; None in work sharing, where nothing is decoded."""
        if self._decoder is None and self.coordinator is None:
            self._decoder = Decoder(self.duty.plan, self.duty.params)
        return self._decoder

    def round(
        self, call: int, iteration: int, leaves: Any, pace: Pace | None, begin: float
    ) -> Round:
        """The round of an iteration that begins now, with parameters' `leaves`."""
        if self.coordinator is not None:
            round_ = SharedRound(
                plan=self.duty.plan,
                params=self.duty.params,
                call=call,
                iteration=iteration,
                leaves=leaves,
                pace=pace,
                place=Place(self.coordinator.address, self.coordinator.transport),
                touch=self.coordinator.touch,
                before=self.roster,
            )
            self.coordinator.serve(round_, begin)
            return round_
        decoder = self.decoder()
        assert decoder is not None
        return CodedRound(decoder, call, iteration, leaves, pace)

    def leave(self, ended: Round) -> None:
        """Keep what the next iteration must know of this one."""
        if isinstance(ended, SharedRound):
            self.roster = ended.ledger.roster


@dataclasses.dataclass
class Process:
    """One worker's process, which loads its work, then takes iteration after iteration.

    Its signs of life are the end of its start, messages and ends of iterations. Where
    there was none for long it is asked (`ask`): it answers beside what it computes.
    """

    ray: Any
    actor: Any
    master_node: str
    attempts: int = 0  # processes before it that did not finish an iteration
    # The reference that is ready once it has loaded; None from then on.
    starting: Any = None
    pid: int | None = None
    node: str | None = None
    # The process itself, whoever has its number later; on Linux, on this node.
    handle: int | None = None
    # References of its iterations.
    unfinished: list[Any] = dataclasses.field(default_factory=list)
    samples: Collection[int] = ()  # of the subsets that it has loaded, each number once
    heard: float = 0.0  # when it last gave a sign of life
    asked: Any = None  # the reference of a question whether it lives
    asked_at: float = 0.0
    born_at: float = dataclasses.field(default_factory=time.monotonic)

    def ask(self) -> None:
        self.asked = self.actor.answer.remote()
        self.asked_at = time.monotonic()

    def speaks(self) -> None:
        """Take note of a sign of life."""
        self.asked = None
        self.heard = time.monotonic()

    def has_answered(self, wait: float | None = 0) -> bool:
        """Whether it answers within so many seconds; it says then who it is."""
        questions = []
        if self.asked is not None:
            questions = [self.asked]
        answered, _ = self.ray.wait(questions, timeout=wait)
        # A dead process shows elsewhere.
        with contextlib.suppress(self.ray.exceptions.RayError):
            for node, pid in self.ray.get(answered):
                if self.pid is None and node == self.master_node:
                    # another system; or it is gone
                    with contextlib.suppress(AttributeError, OSError):
                        self.handle = os.pidfd_open(pid)
                self.node = node
                self.pid = pid
        return bool(answered)

    def end(self) -> None:
        self.ray.kill(self.actor, no_restart=True)
        if self.handle is not None:  # a stopped process does not hear Ray
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, signal.SIGKILL)
            os.close(self.handle)

    def awaited(self) -> Any:
        """Its start, or an old call, that an iteration must wait for, or None."""
        if self.starting is not None:
            return self.starting
        if self.unfinished:
            count = len(self.unfinished)
            done, self.unfinished = self.ray.wait(
                self.unfinished, num_returns=count, timeout=0
            )
            if done:
                self.heard = time.monotonic()
            if done and self.attempts:
                with contextlib.suppress(self.ray.exceptions.RayError):
                    self.ray.get(done)
                    self.attempts = 0
        if len(self.unfinished) >= _UNFINISHED:
            return self.unfinished[0]
        return None

    def is_asked(self) -> None:
        """Take note that it is given an iteration."""
        if not self.unfinished:
            self.heard = time.monotonic()  # nothing was asked of it until now

    def call(self, method: str, arguments: Sequence[Any]) -> Any:
        """The reference to what its actor delivers, or an iteration's stream."""
        called = getattr(self.actor, method)
        if method == "deliver":
            return called.remote(*arguments)
        stream = called.options(num_returns="streaming").remote(*arguments)
        self.unfinished.append(stream.completed())
        return stream


class Processes:
    """N processes, by worker; None for one that is lost or not yet started."""

    def __init__(
        self,
        ray: Any,
        num_workers: int,
        programs: str,
        *,
        replace: bool,
        patience: float,
        num_gpus: float,
    ) -> None:
        self.ray = ray
        self.replace = replace
        self.patience = patience
        self.size = num_workers
        self.iteration = 0
        self.faults: list[Fault] = []
        self.why = ""  # the worker lost last was lost
        self.error: Exception | None = None
        self._raised: set[int] = set()  # workers, in their last iteration
        # Workers whose loss raised, by the note of the samples.
        self._raised_for: dict[str, set[int]] = {}
        # Seconds of a processor that the slowest worker has compiled for what it does.
        self.compiled_in = 0.0
        self._missing = 0  # given up for want of room
        self._looked = 0.0  # when room was last looked for
        # Seconds that the slowest new process took until it had loaded.
        self._started_in = 0.0
        self._assignment: Assignment | None = None
        self._programs = programs
        self._needs = {"CPU": 1.0}
        if num_gpus:
            self._needs["GPU"] = num_gpus
        self._actor = actor_class(ray)
        self._here = ray.get_runtime_context().get_node_id()
        self._all: list[Process | None] = []
        self._closed = False
        self._resize(num_workers)

    @property
    def assignment(self) -> Assignment:
        """What the workers are to do."""
        self._check_open()
        if self._assignment is None:
            raise ValueError("the workers have no work yet: call assign first")
        return self._assignment

    def does(self, work: Assignment) -> bool:
        """Whether they do this: nobody has resized them, or given other work."""
        return self._assignment is work

    @property
    def pause(self) -> float:
        """Seconds between looks at who is silent: a minute at most."""
        return min(self.patience / 2, 60.0)

    @property
    def num_workers(self) -> int:
        return len(self._all)

    def __getitem__(self, worker: int) -> Process | None:
        return self._all[worker]

    @property
    def lost(self) -> tuple[int, ...]:
        """Workers that are lost and not being replaced."""
        return tuple(
            w
            for w, process in enumerate(self._all)
            if process is None and self._assignment
        )

    @property
    def pids(self) -> tuple[int | None, ...]:
        """The process of each worker, None while it starts."""
        return tuple(
            None if p is None or p.starting is not None else p.pid for p in self._all
        )

    @property
    def _living(self) -> list[Process]:
        return [process for process in self._all if process is not None]

    def resize(self, num_workers: int) -> None:
        """Have this many workers from the next `assign` on, lost ones replaced.

        Raises ValueError where the Ray cluster has no room for them.
        """
        if num_workers < 1:
            raise ValueError(f"a cluster needs at least one worker, got {num_workers}")
        self._resize(num_workers)
        self.size = num_workers

    def _resize(self, num_workers: int) -> None:
        self._check_open()
        living = self._living
        if short := self._shortage(num_workers - len(living)):
            raise ValueError(
                f"the Ray cluster has {short}: take fewer workers, or add machines to "
                "it"
            )
        for process in living[num_workers:]:
            process.end()
        self._all = [*living[:num_workers], *[None] * (num_workers - len(living))]
        self._assignment = None

    def returning(self) -> int:
        """For how many workers that were given up there is room again; they count from
        now on.

        Looked at each second at most.
        """
        missing = min(self._missing, self.size - self.num_workers)
        if missing <= 0 or time.monotonic() - self._looked < 1:
            return 0
        self._looked = time.monotonic()
        count = min(missing, self._room_in(self.ray.available_resources()))
        self._missing -= count
        return count

    def restore(self) -> None:
        """Have `size` workers again from the next `assign` on, or, with a warning,
        those left.

        Raises ValueError if none are left.
        """
        self._check_open()
        left = self.num_workers - len(self.lost)
        if left < self.size:
            short = ""
            if left:
                short = self._shortage(self.size - left)
            size = self.size
            if short:
                size = left
                message = (
                    f"it goes on with {left} of {self.size} workers: there are {short}"
                )
                warnings.warn(message, stacklevel=3)
            self._resize(size)

    def _check_open(self) -> None:
        if self._closed or not self._has_ray():
            raise ValueError(
                "the cluster is closed, its processes are gone: make another, and use "
                "it in its `with`"
            )

    def _has_ray(self) -> bool:
        """Whether nobody has ended Ray, or started it anew, in this process."""
        if not self.ray.is_initialized():  # what is asked of Ray would start it
            return False
        return self.ray.get_runtime_context().get_node_id() == self._here

    def _room_in(self, resources: Mapping[str, float]) -> int:
        """For how many workers there is room."""
        rooms = (resources.get(name, 0.0) / need for name, need in self._needs.items())
        return min(int(room + 1e-9) for room in rooms)

    def _shortage(self, count: int) -> str:
        """What Ray lacks for so many more workers; it would wait without a word.

        CPUs of workers that have just ended come back within some seconds, if there are
        as many at all.
        """
        begin = time.monotonic()
        while self._room_in(free := self.ray.available_resources()) < count:
            if not self._can_hold(count) or time.monotonic() - begin > _FREEING:
                needs = {name: count * need for name, need in self._needs.items()}
                name = next(name for name in needs if free.get(name, 0) < needs[name])
                return f"{free.get(name, 0.0):g} free {name}s of {needs[name]:g} needed"
            time.sleep(0.1)
            signals.check()
        return ""

    def _can_hold(self, count: int) -> bool:
        """Whether the nodes that are left would hold `count` more, were they free."""
        return self._room_in(self.ray.cluster_resources()) >= count + len(self._living)

    def is_ready(self, work: Assignment) -> bool:
        """Have the workers compile `work` beside what they do; return whether all have,
        or failed.

        The first one alone, which takes longest, for the others find its programs.
        """
        while work.ready < self.num_workers:
            upto = 1
            if work.ready:
                upto = self.num_workers
            if not work.pending:
                work.pending = [
                    process.actor.prepare.remote(*self._order(work, worker))
                    for worker, process in enumerate(self._all[:upto])
                    if worker >= work.ready
                    and process is not None
                    and process.starting is None
                ]
            if work.pending:
                count = len(work.pending)
                _, work.pending = self.ray.wait(
                    work.pending, num_returns=count, timeout=0
                )
            if work.pending:
                return False
            work.ready = upto
        return True

    def _give(self, work: Assignment) -> None:
        """Give all their duty and data, to load; start those that are missing."""
        self._assignment = work
        self.compiled_in = 0.0
        self._raised.clear()
        self._raised_for.clear()
        for worker, process in enumerate(self._all):
            if process is None:
                self._spawn(worker)
            else:
                self._load(worker, process)

    def starting(self) -> dict[Any, int]:
        """Whose start each reference is."""
        return {
            process.starting: worker
            for worker, process in enumerate(self._all)
            if process is not None and process.starting is not None
        }

    def _wait_until_loaded(self) -> None:
        """Wait until all are started; WorkersLost, or what the loss raises."""
        raised: dict[int, Exception] = {}
        while starting := self.starting():
            asked = [
                start for start, worker in starting.items() if worker not in raised
            ]
            if not asked:  # all have answered: is it the loss?
                self.check_raised(raised)
                for worker, what in raised.items():
                    self.lose(worker, "failed", what)
                raised = {}
                continue
            ready, _ = self.ray.wait(asked, num_returns=1, timeout=self.pause)
            signals.check()
            for worker in (starting[start] for start in ready):
                try:
                    self.has_loaded(worker)
                except self.ray.exceptions.RayTaskError as error:
                    raised[worker] = error
                except self.ray.exceptions.RayError as error:
                    self.lose(worker, "died", error)
            if ready:
                continue
            for worker in (starting[start] for start in asked):
                if why := self.silence(worker):
                    self.lose(worker, "hung", why)
        if self.lost:
            reason = (
                f"their processes end, fail, or are silent, while they start{self.why}"
            )
            raise WorkersLost(self.lost, reason) from self.error

    def has_loaded(self, worker: int) -> None:
        """Take note that a worker has loaded; if it has not, Ray's error is raised."""
        process = self._all[worker]
        assert process is not None
        process.samples, compiled_in = self.ray.get(process.starting)
        self.compiled_in = max(self.compiled_in, compiled_in)
        wait: float | None = 0
        if process.pid is None:  # it says now who it is
            wait = None
        process.has_answered(wait)
        self._started_in = max(self._started_in, time.monotonic() - process.born_at)
        process.born_at = np.inf  # what it loads later is no start
        process.starting = None
        process.speaks()

    def check_raised(self, errors: Mapping[int, Exception]) -> None:
        """Raise what these workers raised if it is the loss, not their machines."""
        # All others raised too, or another worker did for the same samples.
        for worker, error in errors.items():
            cause = cause_of(error)
            notes = getattr(cause, "__notes__", ())
            for samples in (note for note in notes if note.startswith(NOTE)):
                raised_for = self._raised_for.setdefault(samples, set())
                raised_for.add(worker)
                if len(raised_for) > 1:
                    raise cause from error
        self._raised |= errors.keys()
        for worker, process in enumerate(self._all):
            if process is not None and not process.attempts and worker not in errors:
                self._raised.discard(worker)  # it has done an iteration since
        if len(self._raised) == len(self._all):
            error = next(iter(errors.values()))
            raise cause_of(error) from error

    def _patience_with(self, process: Process) -> float:
        """Seconds that a process has for an answer."""
        if process.starting is None:
            return self.patience
        limit = _LOADING
        if process.pid is None:
            limit = _STARTING
        # A successor alone is measured: at first all start at once.
        if process.attempts and self._started_in:
            limit = min(limit, _SLOWER * self._started_in)
        return max(self.patience, limit)

    def silence(self, worker: int) -> str:
        """Why a worker counts as hung: silent when asked, no room; else ""."""
        process = self._all[worker]
        now = time.monotonic()
        if process is None:
            return ""
        if process.asked is not None:
            if process.has_answered():
                process.speaks()
        elif now - process.heard > self.patience:
            process.ask()
        if process.pid is None and not self._can_hold(0):
            return _NO_ROOM
        limit = self._patience_with(process)
        late = process.asked is not None and now - process.asked_at > limit
        if late:
            return f"no answer within {limit:g} s"
        return ""

    def lose(self, worker: int, what: str, why: Exception | str) -> None:
        """End what is left of a worker, and start another in its place if that is
        wanted.

        Without room for another, or after some tries, it is given up, with a warning.
        """
        process = self._all[worker]
        assert process is not None
        if isinstance(why, str):
            self.error = None
            reason = why
        else:
            self.error = why
            reason = reason_of(why)
        self.faults.append(Fault(self.iteration, worker, what, reason))
        self.why = f" ({reason})"
        started = process.has_answered() or process.pid is not None
        process.end()
        self._all[worker] = None
        if not self.replace:
            return
        refused = ""
        crowded = why == _NO_ROOM
        if process.attempts >= _ATTEMPTS:
            refused = f"{_ATTEMPTS} successors ended without an iteration done"
        elif what == "hung" and not (started or self._started_in):
            refused = "it never started"
        elif short := self._shortage(1):
            crowded = True
            refused = f"there is no room for another: {short}"
        if refused:
            self._missing += crowded
            warnings.warn(
                f"worker {worker} {what} ({reason}) and is given up: {refused}",
                stacklevel=2,
            )
            return
        self._spawn(worker, process.attempts + 1, process.node)
        self.faults.append(Fault(self.iteration, worker, "replaced"))

    def _end(self) -> None:
        self._closed = True
        if self._has_ray():
            for process in self._living:
                process.end()
        self._all = []

    def _spawn(self, worker: int, attempts: int = 0, failed: str | None = None) -> None:
        """Start a process, if possible not on the node where one has `failed`."""
        place: Any = "SPREAD"
        if failed is not None:
            from ray.util.scheduling_strategies import (
                NodeLabelSchedulingStrategy,
                NotIn,
            )

            place = NodeLabelSchedulingStrategy(
                {}, soft={"ray.io/node-id": NotIn(failed)}
            )
        options: dict[str, Any] = {
            "num_cpus": 1,
            "max_restarts": 0,
            "scheduling_strategy": place,
        }
        if "GPU" in self._needs:  # JAX would take three quarters of the memory for each
            options |= {
                "num_gpus": self._needs["GPU"],
                "runtime_env": {"env_vars": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}},
            }
        actor = self._actor.options(**options).remote()
        self._all[worker] = process = Process(self.ray, actor, self._here, attempts)
        process.ask()
        self._load(worker, process)

    def _load(self, worker: int, process: Process) -> None:
        process.starting = process.actor.load.remote(
            *self._order(self.assignment, worker)
        )

    def _order(self, work: Assignment, worker: int) -> tuple[Any, ...]:
        """What a `Bench` takes."""
        held = {j: work.subsets[j] for j in work.duty.plan.held(worker)}
        kept = work.kept
        if self._assignment is not None:
            kept = (*kept, self._assignment.number)
        return work.number, work.reference, worker, held, kept, self._programs
