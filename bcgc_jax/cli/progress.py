"""What a person who waits is shown after two seconds: a spinner on a terminal, elsewhere a line each half
minute. One rule for all commands and experiments.
"""

import itertools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from shutil import get_terminal_size
from typing import TypeVar

from bcgc_jax.cli.exit import say

T = TypeVar("T")

_QUIET, _TICK, _EVERY = 2.0, 0.2, 30.0  # seconds before a spinner, between its moves, and between two lines


class Progress:
    """What is done now, and how far it is: how many are done, if they are `counted`, or how much."""

    def __init__(self, what: str = "", total: float = 0.0, *, counted: bool = True) -> None:
        self._counted = counted
        self._what, self._done, self._total = what, 0.0, total
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "Progress":
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def __str__(self) -> str:
        done = f", {100 * self._done / self._total:.0f} %" if self._total else ""
        if done and self._counted:
            done = f", {self._done:,.0f} of {self._total:,.0f}"
        return f"{self._what}{done}, {time.monotonic() - self._began:.0f} s"

    def now(self, what: str) -> None:
        self._what = what

    def reach(self, done: float, total: float) -> None:
        self._done, self._total = done, total

    def advance(self) -> None:
        self._done += 1

    def _show(self) -> None:
        if sys.stderr is None or not sys.stderr.isatty():
            while not self._ended.wait(_EVERY):
                say(str(self))
        elif not self._ended.wait(_QUIET):
            for sign in itertools.cycle("|/-\\"):
                _write(f"{sign} {self}"[: get_terminal_size().columns - 1])
                if self._ended.wait(_TICK):
                    break
            _write("")


def _write(line: str) -> None:
    """In place of the line that is there."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"\r{line}\x1b[K")
        sys.stderr.flush()


def each(items: Sequence[T], what: str) -> Iterator[T]:
    """`items`, with the progress that is made with them.

    >>> list(each([1, 2], "counting"))
    [1, 2]
    """
    with Progress(what, len(items)) as bar:
        for item in items:
            yield item
            bar.advance()
