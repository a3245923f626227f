"""What a person who waits is shown: on a terminal a spinner, after two seconds, elsewhere a line each half
minute. One rule for all commands and experiments.
"""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from bcgc_jax.cli.exit import say

T = TypeVar("T")

_QUIET, _TICK, _EVERY = 2.0, 0.2, 30.0  # seconds before a spinner, between its moves, and between two lines


class Progress:
    """What is done now, and how far it is: so many of a `total`."""

    def __init__(self, what: str = "", total: int = 0) -> None:
        self.what = what
        self.reach(0, total)
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "Progress":
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def __str__(self) -> str:
        done = f", {self.done:,} of {self.total:,}" if self.total > 1 else ""
        return f"{self.what}{done}, {time.monotonic() - self._began:.0f} s"

    def reach(self, done: int, total: int) -> None:
        self.done, self.total, self._begun = done, total, 0

    def begin(self, what: str) -> None:
        self.what, self.done, self._begun = what, self._begun, self._begun + 1

    def _show(self) -> None:
        if sys.stderr is None or not sys.stderr.isatty():
            while not self._ended.wait(_EVERY):
                say(str(self))
        elif not self._ended.wait(_QUIET):
            from rich.console import Console

            with Console(stderr=True, markup=False).status(str(self)) as spinner:
                while not self._ended.wait(_TICK):
                    spinner.update(str(self))


def each(items: Sequence[T], what: str) -> Iterator[T]:
    with Progress(what, len(items)) as bar:
        for item in items:
            bar.begin(what)
            yield item
