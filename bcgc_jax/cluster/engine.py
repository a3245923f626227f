"""Ray, as an optional extra: started on this machine, or joined; and what its errors mean."""

import contextlib
import os
import re
import secrets
import select
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bcgc_jax._extras import to_install
from bcgc_jax.cluster import signals
from bcgc_jax.cluster.folders import private_folder

# Ray keeps the one that a process begins with.
_TOKEN = secrets.token_hex(32)
# Seconds that a cluster has to take a connection, and to answer; that Ray's processes have to end.
_PATIENCE, _ENDING = 5.0, 5.0


def _have_token() -> None:
    """Ray would write one to the home, for everybody to read, and fail where it cannot write."""
    if not (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_TOKEN", _TOKEN)


def load_ray(*, local: bool = True) -> Any:
    """The module `ray`; ImportError that says what to install."""
    # Read when Ray is imported: no statistics leave the machine, a worker without a share of a GPU does not
    # see any (all would take most of the memory of the first), no answer of Ray's own to SIGTERM, a stack and
    # an abortion, and servers listen on the loopback address alone (the name of the setting is that of the
    # systems where this is Ray's default; an explicit address of 127.0.0.1 is replaced).
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
        # What happens to workers is in `Cluster.faults`: not a paragraph for each on stdout.
        "RAY_DEDUP_LOGS_SKIP_REGEX": "worker died or was killed|worker processes have been",
    }
    settings |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if local else {}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            f"training on real processes runs on Ray, which is not installed: {to_install('cluster')}"
        ) from error
    return ray


# What ends Ray, where a cluster of this process has started or joined it: the last of its users does.
_ending: contextlib.ExitStack | None = None
_users = 0


@contextlib.contextmanager
def session(address: str | None, num_workers: int, store_bytes: int) -> Iterator[Any]:
    """Ray, on this machine alone, or joined at `address`; one that runs already is used.

    It ends with the last session that uses it, unless the caller has started it. Locally a worker counts as
    one CPU however many there are: they may share them.
    """
    global _ending, _users
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals.handled())  # before anything is made
        stack.enter_context(_settings_restored())
        ray = load_ray(local=address is None)
        if not ray.is_initialized():
            _start(ray, stack, address, num_workers, store_bytes)
            _ending, _users = stack.pop_all(), 0
        elif address is not None:
            raise ConnectionError(
                f"this process is connected to a Ray cluster already: end that (ray.shutdown(), and each "
                f"`Cluster`) before it joins {address}, or give no address to use the one it has"
            )
    _users += 1
    try:
        yield ray
    except SystemExit as error:
        signals.set_status(error)
        raise
    finally:
        _users -= 1
        if _ending is not None and not _users:
            ending, _ending = _ending, None
            ending.close()


def _start(
    ray: Any, stack: contextlib.ExitStack, address: str | None, num_workers: int, store_bytes: int
) -> None:
    """What undoes it is put on the stack."""
    options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address is None:
        _have_token()
        folder = os.path.join(stack.enter_context(private_folder()), "ray")
        # With room for the workers that replace others; a store smaller than 80 MB is refused.
        options |= {
            "num_cpus": 2 * num_workers,
            "object_store_memory": max(2 * store_bytes, 100 * 2**20),
            "include_dashboard": False,
            "_temp_dir": folder,
        }
        stack.callback(_end_all, ray.shutdown, folder)
    else:
        _check_answers(address)
        stack.callback(ray.shutdown)
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
                f"the Ray cluster at {address} refuses the connection. If it asks for a token, set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what `ray get-auth-token` says on its head, if "
                "that is another machine; else it may be of another version of Ray"
            ) from error


@contextlib.contextmanager
def _settings_restored() -> Iterator[None]:
    """What Ray, or what is said to it, leaves in the environment does not stay.

    But for the mode that it has chosen to authenticate with: it keeps that in its memory too, and processes
    that are started in another one later would be refused.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        changed = {name for name in before.keys() | os.environ if before.get(name) != os.environ.get(name)}
        for name in changed - {"RAY_AUTH_MODE"}:
            if name.startswith("RAY_") or name == "PYTHONBREAKPOINT":
                os.environ.pop(name, None)
                os.environ.update({name: before[name]} if name in before else {})


def _end_all(shutdown: Callable[[], None], folder: str) -> None:
    """Call `shutdown`, and end what it leaves of the processes that this one has started with a `folder`.

    Children of theirs included: Ray's agents look for its server for a minute before they end. On Linux.
    """
    handles = []
    for pid in _started_with(folder):
        with contextlib.suppress(AttributeError, OSError):
            handles.append(os.pidfd_open(pid))
    try:
        with signals.held_back():
            shutdown()
            until = time.monotonic() + _ENDING
            for handle in handles:
                if not select.select([handle], [], [], max(until - time.monotonic(), 0))[0]:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        for handle in handles:
            os.close(handle)


def _started_with(folder: str) -> set[int]:
    """Children of this process whose command names the folder, and all that they have started."""
    parents, named = {}, set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parents[pid] == os.getpid() and folder in (entry / "cmdline").read_text(errors="replace"):
                named.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in named} - named:
        named |= more
    return named


# What a client of gRPC says first, and the type of the frame, in the fourth byte, that a server begins with.
_PREFACE, _SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), 4


def _check_answers(address: str) -> None:
    """ConnectionError where nobody answers as Ray does: it would try for minutes, then end the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConnectionError(f"the address of a Ray cluster is HOST:PORT, got {address}")
    try:
        with socket.create_connection((host, int(port)), timeout=_PATIENCE) as line:
            if os.environ.get("RAY_USE_TLS", "0") != "0":  # encrypted from the first byte on
                return
            line.sendall(_PREFACE)
            if line.recv(9)[3:4] != bytes([_SETTINGS]):
                raise OSError("what listens there is another program: the port of Ray is 6379 mostly")
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address}: start one with `ray start --head`, or give no address to "
            f"run on this machine alone ({error})"
        ) from error


def cause_of(error: Exception) -> Exception:
    """What was raised in another process, without the traceback there, of which Ray makes its text."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else RuntimeError(reason_of(error))


def reason_of(error: Exception) -> str:
    """One line of Ray's many: what was raised in the process, or how it ended.

    >>> reason_of(RuntimeError("Died.\\nIt is dead because it was ended. Some common causes: 1"))
    'it was ended'
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return f"{type(cause).__name__}: {cause}".partition("\n")[0].removesuffix(": ")
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    ended = [line.partition("dead because ")[2] for line in lines if "dead because " in line]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    chosen = (ended or raised[-1:] or lines or [type(error).__name__])[0]
    return chosen.partition(". Some common causes")[0].removesuffix(".")
