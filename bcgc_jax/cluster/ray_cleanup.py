"""Ray's own processes, from its start to its end: none of them is to stay, whatever comes in between."""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Seconds that they have to end of themselves.
_ENDING = 5.0


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Ctrl-C is heard at the end of this: who starts processes has no way back from its middle."""
    answer = signal.getsignal(signal.SIGINT)
    if answer is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, answer)
        if came:
            signal.raise_signal(signal.SIGINT)


def end_all(shutdown: Callable[[], None], folder: str) -> None:
    """Call `shutdown`, and end what it leaves of the processes that this one has started with a `folder`.

    Children of theirs included: Ray's agents look for its server for a minute before they end. On Linux.
    """
    handles = []
    for pid in _started_with(folder):
        with contextlib.suppress(AttributeError, OSError):
            handles.append(os.pidfd_open(pid))
    try:
        with interrupts_held_back():
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
