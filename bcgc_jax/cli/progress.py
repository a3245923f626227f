"""Progress for who waits: a spinner on a terminal, else a line each half minute."""

import sys
import threading
import time

from bcgc_jax.cli.exit import say

_QUIET = 2.0  # seconds before a spinner
_EVERY = 30.0  # seconds between two lines


class Progress:
    """What is done now, and how far it is: so many of a `total`."""

    def __init__(self, what: str = "", total: int = 0) -> None:
        self.what = what
        self.reach(0, total)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "Progress":
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def __str__(self) -> str:
        done = ""
        if self.total > 1:
            done = f", {self.done:,} of {self.total:,}"
        return f"{self.what}{done}, {time.monotonic() - self._began:.0f} s"

    __rich__ = __str__  # of a spinner, whenever it moves

    def reach(self, done: int, total: int) -> None:
        self.done = done
        self.total = total
        self._begun = 0

    def show(self, what: str, done: int, total: int) -> None:
        """Say what is done now, of which so many of a `total` are done."""
        self.what = what
        self.reach(done, total)

    def begin(self, what: str) -> None:
        self.what = what
        self.done = self._begun
        self._begun = self._begun + 1

    def _show(self) -> None:
        if sys.stderr is None or not sys.stderr.isatty():
            while not self._ended.wait(_EVERY):
                say(str(self))
        elif not self._ended.wait(_QUIET):
            from rich.console import Console

            with Console(stderr=True, markup=False).status(self):
                self._ended.wait()
