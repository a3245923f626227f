"""What the command line does about compiling: programs are kept for the next call, and its time is told."""

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from bcgc_jax.cli.names import OFF, VARIABLE
from bcgc_jax.crossing import MANY
from bcgc_jax.laws import Atomic, JointLaw, Law

_MOST_BYTES = 2**26  # the README's `bcgc solve` leaves 1 MB; JAX looks at all entries whenever it adds one
_MAX_WORKERS_STEP = 32

_TRACED, _LOWERED, _COMPILED = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def keep_programs(asked: str | None) -> Path | None:
    """JAX keeps compiled programs in a folder, which is returned: below the one `asked` for, that of the
    environment, or the user's cache. One that cannot be used is none; JAX's own setting is left alone.
    """
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    asked = asked or os.environ.get(VARIABLE) or None
    if asked is None and jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return None
    if asked is not None and asked.lower() == OFF:
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    try:
        folder = (Path(asked).expanduser() if asked else _user_cache()) / "programs"
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        usable = os.access(folder, os.R_OK | os.W_OK | os.X_OK) and _private(folder)
    except (OSError, RuntimeError):  # also where there is no home
        usable = False
    if not usable:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def _user_cache() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bcgc_jax"


def _private(folder: Path) -> bool:
    """Whether nobody else can put programs there, which this process would then run."""
    if not hasattr(os, "getuid"):
        return True
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def padded_workers(num_workers: int, law: Law | JointLaw, *, own_schemes: bool = False) -> int:
    """The static maximum below which N is traced, so that one program serves many N.

    The steps are what costs nothing that a person would notice: N = 20 solves as fast below 32 as below 20.
    Not for atoms and rows, which have a trace in their shape, nor for schemes of the user's own, which may
    count on N levels; nor for many workers, whose smooth steps need to know N.
    """
    padded = -(-num_workers // _MAX_WORKERS_STEP) * _MAX_WORKERS_STEP
    if isinstance(law, JointLaw) or isinstance(law.pieces(), Atomic) or own_schemes or padded > MANY:
        return num_workers
    return padded


class Stopwatch:
    """Seconds of a thread without those of compiling; `told` hears when one compiles, and when it is done."""

    def __init__(self, told: Callable[[bool], None] = lambda compiling: None) -> None:
        self._told, self._local = told, threading.local()

    def __enter__(self) -> "Stopwatch":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event not in (_TRACED, _LOWERED, _COMPILED) or not hasattr(self._local, "spans"):
            return
        now = time.perf_counter()
        self._local.spans.append((now - duration_secs, now))
        self._told(event != _COMPILED)

    @contextlib.contextmanager
    def lap(self) -> Iterator[Callable[[], float]]:
        """What is called afterwards gives the seconds of the body."""
        spans = self._local.spans = []
        start, end = time.perf_counter(), 0.0
        try:
            yield lambda: max(0.0, end - start - _length(spans))
        finally:
            end = time.perf_counter()
            del self._local.spans


def _length(spans: list[tuple[float, float]]) -> float:
    """Of all spans together; those within others, as functions are traced within functions, count once."""
    total, reached = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
