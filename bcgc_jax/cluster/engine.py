"""Ray, an optional extra: started or joined, its errors, workers as its actors."""

import contextlib
import copyreg
import fcntl
import gc
import itertools
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgc_jax._extras import to_install
from bcgc_jax.cluster import signals
from bcgc_jax.cluster.chunks import ChunkWorker, Sum
from bcgc_jax.cluster.worker import Duty, Message, WorkerProcess
from bcgc_jax.coding.checks import check_loss
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import PyTree, num_samples
from bcgc_jax.steps.ledger import Chunk


def _new_custom_vjp() -> Any:
    return object.__new__(jax.custom_vjp)


# A loss of the main script is sent as it is, and JAX does not say how such a function
# is made anew.
copyreg.pickle(jax.custom_vjp, lambda function: (_new_custom_vjp, (), vars(function)))  # type: ignore[arg-type]

# Ray keeps the one that a process begins with.
_TOKEN = secrets.token_hex(32)
# Seconds that a cluster has to take a connection, and to answer; Ray would try for
# minutes.
_PATIENCE = 5.0
# Seconds that Ray's processes have to end by themselves, and when they are killed.
_ENDING = 5.0


def _have_token() -> None:
    """Ray would write a token to the home, for all to read, or fail to write it."""
    if not (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_TOKEN", _TOKEN)


def load_ray(*, local: bool = True) -> Any:
    """The module `ray`; ImportError that says what to install."""
    # Read when Ray is imported: no statistics leave the machine, a worker without a
    # share of a GPU does not see any (all would take most of the memory of the first),
    # no answer of Ray's own to SIGTERM, a stack and an abortion, and servers listen on
    # the loopback address alone (the name of the setting is that of the systems where
    # this is Ray's default; an explicit address of 127.0.0.1 is replaced).
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
        # Else `ray.init` waits for processes that nobody asked for, and for ever where
        # one ends as it starts.
        "RAY_prestart_worker_first_driver": "0",
        # What happens to workers is in `Cluster.faults`: not a paragraph for each on
        # stdout.
        "RAY_DEDUP_LOGS_SKIP_REGEX": (
            "worker died or was killed|worker processes have been"
        ),
    }
    if local:
        settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    else:
        # A cluster that answers, but refuses, is asked again each second: twenty times
        # by default.
        settings["RAY_NUM_REDIS_GET_RETRIES"] = "6"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "training on real processes runs on Ray, which is not installed: "
            f"{to_install('cluster')}"
        ) from error
    return ray


# What ends Ray, where a cluster of this process has started or joined it: the last of
# its users does. One thread at a time starts or ends it.
_ending: contextlib.ExitStack | None = None
_users = 0
_turn = threading.Lock()


@contextlib.contextmanager
def session(address: str | None, num_workers: int, store_bytes: int) -> Iterator[Any]:
    """Ray, on this machine alone, or joined at `address`; one that runs already is
    used.

    It ends with the last session that uses it, unless the caller has started it.
    Locally a worker counts as one CPU however many there are: they may share them.
    """
    global _ending, _users
    with _turn, contextlib.ExitStack() as stack:
        stack.enter_context(signals.handled())  # before anything is made
        stack.enter_context(_settings_restored())
        ray = load_ray(local=address is None)
        if not ray.is_initialized():
            _start(ray, stack, address, num_workers, store_bytes)
            _ending = stack.pop_all()
            _users = 0
        elif address is not None:
            raise ConnectionError(
                "this process is connected to a Ray cluster already: end that "
                f"(ray.shutdown(), and each `Cluster`) before it joins {address}, or "
                "give no address to use the one it has"
            )
        _users += 1
    try:
        yield ray
    except SystemExit as error:
        signals.set_status(error)
        raise
    finally:
        with _turn:
            _users -= 1
            if _ending is not None and not _users:
                ending = _ending
                _ending = None
                ending.close()


def _start(
    ray: Any,
    stack: contextlib.ExitStack,
    address: str | None,
    num_workers: int,
    store_bytes: int,
) -> None:
    """Start or join Ray, and put what undoes it on the stack."""
    options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address is None:
        _have_token()
        folder = os.path.join(stack.enter_context(private_folder()), "ray")
        # With room for the workers that replace others.
        options |= {
            "num_cpus": 2 * num_workers,
            "include_dashboard": False,
            "_temp_dir": folder,
        }
        # Else Ray takes 30 % of the memory. Where its store is full all wait two
        # seconds for room, and a slow worker is late to free what it has read. It
        # refuses less than 80 MB.
        if store_bytes:
            options["object_store_memory"] = max(2 * store_bytes, 100 * 2**20)
        stack.callback(_end_all, ray.shutdown, folder)
    else:
        _check_answers(address)
        stack.callback(_shut_down, ray.shutdown)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        # Ray's children are new programs: they do not run on in a copy of this one.
        warnings.filterwarnings("ignore", "os.fork.. was called", RuntimeWarning)
        try:
            with signals.held_back():
                ray.init(address or "local", **options)
        except ConnectionError as error:
            if address is None:
                raise
            raise ConnectionError(
                f"the Ray cluster at {address} refuses the connection. If it asks for "
                "a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what `ray "
                "get-auth-token` says on its head, if that is another machine; else it "
                "may be of another version of Ray"
            ) from error


@contextlib.contextmanager
def _settings_restored() -> Iterator[None]:
    """What Ray, or what is said to it, leaves in the environment does not stay.

    But for how it authenticates, the mode and the token: it keeps these in its memory
    too. A Ray that is started later in another mode would be refused, and one without
    the token would end as it starts.
    """

    def settings() -> dict[str, str]:
        names = {name for name in os.environ if name.startswith("RAY_")} | {
            "PYTHONBREAKPOINT"
        }
        names -= {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
        return {name: os.environ[name] for name in names if name in os.environ}

    before = settings()
    try:
        yield
    finally:
        for name in settings().keys() - before:
            del os.environ[name]
        os.environ |= before


def _shut_down(shutdown: Callable[[], None]) -> None:
    """Call it while no thread collects garbage."""
    # A reference of Ray's that is freed then ends the process.
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        shutdown()
    finally:
        if collecting:
            gc.enable()


def _end_all(shutdown: Callable[[], None], folder: str) -> None:
    """Call `shutdown`, and end what it leaves of the processes that work in a `folder`,
    on Linux.

    Ray's agents look for its server for a minute before they end.
    """
    with signals.held_back():
        _shut_down(shutdown)
        until = time.monotonic() + _ENDING
        while _at_work_in(folder) and time.monotonic() < until:
            time.sleep(0.05)
        _kill_in(folder)


def _kill_in(folder: str) -> None:
    """Kill who works in a folder, and wait: else they could make the folder anew."""
    until = time.monotonic() + _ENDING
    while (left := _at_work_in(folder)) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _at_work_in(folder: str) -> list[int]:
    """This user's processes of programs of Ray's whose command names the folder."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program, named, _ = (
                (entry / "cmdline").read_text(errors="replace").partition(folder)
            )
            if named and "/ray/" in program and entry.stat().st_uid == os.getuid():
                pids.append(int(entry.name))
    return pids


# The type of the frame, in the fourth byte, that a server of gRPC begins with.
_SETTINGS = 4
# What a client of gRPC says first.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
    [0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0]
)


def _check_answers(address: str) -> None:
    """Raise ConnectionError where nobody answers as Ray does."""
    # Ray would try for minutes, then end the process.
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConnectionError(
            f"the address of a Ray cluster is HOST:PORT, got {address}"
        )
    try:
        with socket.create_connection((host, int(port)), timeout=_PATIENCE) as line:
            # TLS encrypts from the first byte on.
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            line.sendall(_PREFACE)
            if line.recv(9)[3:4] != bytes([_SETTINGS]):
                raise OSError(
                    "what listens there is another program: the port of Ray is 6379 "
                    "mostly"
                )
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address}: start one with `ray start --head`, "
            f"or give no address to run on this machine alone ({error})"
        ) from error


def cause_of(error: Exception) -> Exception:
    """What was raised in another process, without Ray's traceback in its text."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return cause
    return RuntimeError(reason_of(error))


def reason_of(error: Exception) -> str:
    """One line of Ray's many: what was raised in the process, or how it ended."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        text = f"{type(cause).__name__}: {cause}"
    else:
        text = str(error)
    lines = [
        line.strip()
        for line in re.sub(r"\x1b\[\d*m", "", text).splitlines()
        if line.strip()
    ]
    ended = [
        line.partition("dead because ")[2] for line in lines if "dead because " in line
    ]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    chosen = (ended or raised[-1:] or lines or [type(error).__name__])[0]
    return (
        chosen.partition(". Some common causes")[0].removesuffix(".").removesuffix(":")
    )


# (j, N) to subset j of N, a pytree of arrays `[m, …]`: from a file, a database, a
# generator.
Source = Callable[[int, int], PyTree]


class Made(NamedTuple):
    """Subset `number` of `total`: `source`, called `name`, makes it on the worker."""

    source: Source
    name: int
    number: int
    total: int

    def make(self) -> PyTree:
        subset = jax.tree.map(np.asarray, self.source(self.number, self.total))
        try:
            num_samples(subset)
        except ValueError as error:
            raise ValueError(
                "the function that makes the data returned no arrays of samples for "
                f"subset {self.number} of {self.total}, but {subset!r:.60}: it must "
                "return a pytree of arrays [m, …]"
            ) from error
        return subset


@contextlib.contextmanager
def shared_programs() -> Iterator[str]:
    """The folder of programs that workers compile for each other: the master's, or
    their own.

    A worker that replaces another starts in half the time, a plan of the same blocks is
    taken up in a tenth.
    """
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if folder and is_safe(os.path.realpath(folder)):
        yield os.path.realpath(folder)
    else:
        with private_folder() as new_folder:
            yield new_folder


class Compiled(NamedTuple):
    """A compiled worker, its subsets' sizes, and seconds of a processor for it."""

    worker: WorkerProcess | ChunkWorker
    counts: set[int]
    seconds: float


class Bench:
    """A process's compiled workers, by plan and row, and the data it has made."""

    def __init__(self, fetched: Callable[[Any], Any]) -> None:
        self._fetched = fetched  # what a reference is of
        # By the number of the plan and the row in it.
        self._workers: dict[tuple[int, int], Compiled] = {}
        self._made: dict[tuple[int, int, int], PyTree] = {}

    def worker(
        self,
        number: int,
        duty: Duty[Any],
        index: int,
        held: dict[Any, Any],
        kept: Sequence[int],
        programs: str,
    ) -> Compiled:
        """The worker for row `index` of the plan of this `number`.

        It is compiled once, and forgotten if it is not to be `kept` with the next.
        `held` are references to subsets, or `Made`; `programs` is the folder of
        `shared_programs`.
        """
        if is_safe(programs):  # else this is another machine
            jax.config.update("jax_compilation_cache_dir", programs)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compiled = self._workers.get((number, index))
        if compiled is None:
            compiled = self._compile(duty, index, held)
        kept_keys = [key for key in self._workers if key[0] in kept]
        self._workers = {key: self._workers[key] for key in kept_keys}
        self._workers[number, index] = compiled
        return compiled

    def _compile(self, duty: Duty[Any], index: int, held: dict[Any, Any]) -> Compiled:
        is_made = any(isinstance(data, Made) for data in held.values())
        subsets: Any
        if duty.plan.handed_out and is_made:
            duty, subsets, counts = _made_chunks(duty, held)
        else:
            subsets = self.subsets(held)
            counts = set(map(num_samples, subsets.values()))
        if is_made:  # data that the master has not seen
            _check(duty, next(iter(subsets.values())))
        worker: WorkerProcess | ChunkWorker
        if duty.plan.handed_out:
            worker = ChunkWorker(duty, index, subsets)
        else:
            worker = WorkerProcess(duty, index, subsets)
        began = time.process_time()
        worker.warm_up()
        return Compiled(worker, counts, time.process_time() - began)

    def subsets(self, sources: Mapping[Any, Any]) -> dict[Any, PyTree]:
        """Subsets by number, made once or fetched; all others are forgotten."""
        subsets = {}
        made_subsets = {}
        for j, data in sources.items():
            if not isinstance(data, Made):
                subsets[j] = self._fetched(data)
                continue
            key = data[1:]
            if key not in made_subsets:
                if key in self._made:
                    made_subsets[key] = self._made[key]
                else:
                    made_subsets[key] = data.make()
            subsets[j] = made_subsets[key]
        self._made = made_subsets
        return subsets


def _made_chunks(
    duty: Duty[SharedPlan], held: Mapping[Chunk, Made]
) -> tuple[Duty[SharedPlan], dict[Chunk, PyTree], set[int]]:
    """The duty with what each chunk counts, the stored chunks, and how many samples
    subsets have.

    Subsets are made one by one. If they differ in size, the master refuses them.
    """
    plan = duty.plan
    data = {}
    counts = set()
    for _, numbers in itertools.groupby(sorted(held), key=lambda chunk: chunk[0]):
        chunks = list(numbers)
        whole = held[chunks[0]].make()
        counts.add(num_samples(whole))
        spans = plan.spans(num_samples(whole))
        for chunk in chunks:
            data[chunk] = jax.tree.map(
                lambda x, span=spans[chunk[1]]: x[span].copy(), whole
            )
    weights = plan.weights([max(counts)] * plan.num_workers)
    return duty._replace(weights=weights), data, counts


def _check(duty: Duty[Any], data: PyTree) -> None:
    sample = jax.tree.map(lambda x: x[:1], data)
    with jax.enable_x64(duty.x64):  # a setting of each thread
        check_loss(duty.loss, duty.params, sample, duty.plan.mean)


def actor_class(ray: Any) -> Any:
    """The worker as an actor: threads that compute, listen, and compile ahead."""

    class Actor:
        worker: Any = None

        def __init__(self) -> None:
            self._bench = Bench(ray.get)

        def load(self, *order: Any) -> tuple[set[int], float]:
            """Do from now on as ordered; ends once all is compiled.

            It ends with the subsets' sizes, and with how long it compiled.
            """
            self.worker, counts, compiled_in = self._bench.worker(*order)
            return counts, compiled_in

        @ray.method(concurrency_group="beside")
        def prepare(self, *order: Any) -> None:
            """Compile what will be ordered, beside what is being computed."""
            self._bench.worker(*order)

        def compute(
            self, call: int, iteration: int, leaves: Any, pace: Any
        ) -> Iterator[Message]:
            yield from self.worker.compute(call, iteration, leaves, pace)

        def share(self, begin: Any, leaves: Any, place: Any) -> Iterator[Sum]:
            yield from self.worker.share(begin, leaves, place)

        @ray.method(concurrency_group="control")
        def stop(self, call: int) -> None:
            self.worker.stop(call)

        # Beside what is being computed: a slow worker does not hold back what it has.
        @ray.method(concurrency_group="control")
        def deliver(self, *asked: Any) -> Any:
            return self.worker.deliver(*asked)

        @ray.method(concurrency_group="control")
        def answer(self) -> tuple[str, int]:
            """That the process runs at all: its node and its number."""
            return ray.get_runtime_context().get_node_id(), os.getpid()

    return ray.remote(concurrency_groups={"control": 1, "beside": 1})(Actor)


_PREFIX = "bcgc-"
# Each is locked by its process for as long as it runs.
_LOCK = "lock"
# Letters of a place that leave room for a socket's: its path has 103 at most, on Linux
# 107, and Ray adds some 70 to the folder's.
_SHORT = 20


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """A folder of mode 700, gone at the end, at a path of few letters if it can be."""
    places = os.environ.get("RAY_TMPDIR", ""), tempfile.gettempdir(), "/tmp"
    place = next(
        (path for path in places if 0 < len(path) <= _SHORT), tempfile.gettempdir()
    )
    _sweep(place)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=place)
    handle = os.open(os.path.join(folder, "new"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.rename(os.path.join(folder, "new"), os.path.join(folder, _LOCK))
        yield folder
    finally:
        for _ in range(10):  # Ray's last processes write while they end
            with contextlib.suppress(OSError):
                _remove(folder)
            if not os.path.exists(folder):
                break
            time.sleep(0.1)
        os.close(handle)
        # processes of a killed one may have written into its folder after the first
        # time
        _sweep(place)


def _remove(folder: str) -> None:
    """Remove what can be, the lock last: a folder without one is not found again."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.name != _LOCK:
            os.unlink(entry.path)
    if os.listdir(folder) == [_LOCK]:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(place: str) -> None:
    """Remove what killed processes of this user have left: private folders whose lock
    nobody holds.

    Ray's processes there end first: its agents write for a minute more, into a folder
    that they make anew.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(place):
            if entry.name.startswith(_PREFIX) and is_safe(entry.path, private=True):
                with contextlib.suppress(OSError):  # it is not there yet, or held
                    handle = os.open(
                        os.path.join(entry.path, _LOCK), os.O_RDWR | os.O_NOFOLLOW
                    )
                    with contextlib.closing(os.fdopen(handle)):
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        _kill_in(entry.path)
                        _remove(entry.path)


def is_safe(path: str, *, private: bool = False) -> bool:
    """Whether it is this user's folder, which no other can write to (or look into)."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    refused = 0o022
    if private:
        refused = 0o077
    is_own = status.st_uid == os.getuid()
    return is_own and stat.S_ISDIR(status.st_mode) and not status.st_mode & refused
