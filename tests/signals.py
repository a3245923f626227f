"""Ctrl-C in tests: a parent may ignore it, as `nohup` and background jobs do."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def ctrl_c() -> Iterator[None]:
    """Ctrl-C does, here and in programs started here, what it does in a terminal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
