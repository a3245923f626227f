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
    """What is done now, and how far it is: so many of a `total`, or a share, of 1."""

    def __init__(self, what: str = "", total: float = 0) -> None:
        self.what, self.done, self.total = what, 0.0, total
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "Progress":
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def __str__(self) -> str:
        done = f", {self.done:,.0f} of {self.total:,.0f}" if self.total > 1 else ""
        if self.total == 1:
            done = f", {100 * self.done:.0f} %"
        return f"{self.what}{done}, {time.monotonic() - self._began:.0f} s"

    def reach(self, done: float, total: float) -> None:
        self.done, self.total = done, total

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
    """`items`, with the progress that is made with them."""
    with Progress(what, len(items)) as bar:
        for item in items:
            yield item
            bar.done += 1
