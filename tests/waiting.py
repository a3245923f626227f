"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable


def comes_true(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether a condition holds within so many seconds, looked at again and again."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
