"""What a person who waits is shown: a bar on a terminal; elsewhere at most a line each half minute.

One rule for all commands, experiments and benchmarks; where rich is missing, lines do on a terminal too.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from bcgc_jax.cli.ending import say

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
Report = Callable[[int, int], None]

_EVERY = 30.0  # seconds between two lines
_TICK = 0.2  # seconds between two moves of a bar


def progress(*, counted: bool = True, speed: bool = False) -> "Progress | Lines":
    """A bar on stderr that leaves nothing behind, or `Lines`; with tasks either way.

    It may say how many of all are done, and with `speed` the field of that name and the time that is left.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    except ImportError:
        return Lines()
    screen = Console(stderr=True)
    if not screen.is_terminal:
        return Lines()
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn()]
    columns += [TextColumn("{task.completed:,.0f}/{task.total:,.0f}")] * counted
    columns += [TextColumn("{task.fields[speed]}")] * speed + [TimeElapsedColumn()]
    return Progress(*columns, *[TimeRemainingColumn()] * speed, console=screen, transient=True)


class Lines:
    """The tasks of `rich.progress.Progress`, the last one of which is told about every half minute."""

    def __init__(self) -> None:
        self._what, self._done, self._total = "", 0.0, 0.0
        self._began, self._ended = time.monotonic(), threading.Event()

    def __enter__(self) -> "Lines":
        threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def add_task(self, description: str, *, total: float = 0, **_: Any) -> Any:
        self.update(None, description=description, total=total, completed=0)

    def update(
        self,
        task: Any,
        *,
        description: str | None = None,
        total: float | None = None,
        completed: float | None = None,
        **_: Any,
    ) -> None:
        self._what = self._what if description is None else description
        self._total = self._total if total is None else total
        self._done = self._done if completed is None else completed

    def advance(self, task: Any) -> None:
        self._done += 1

    def _tell(self) -> None:
        while not self._ended.wait(_EVERY):
            share = f", {100 * self._done / self._total:.0f} %" if self._total else ""
            say(f"{self._what}{share}, {time.monotonic() - self._began:.0f} s")


def each(items: Sequence[T], what: str) -> Iterator[T]:
    """`items`, with the progress that is made with them.

    >>> list(each([1, 2], "counting"))
    [1, 2]
    """
    with progress() as bar:
        task = bar.add_task(what, total=len(items))
        for item in items:
            yield item
            bar.advance(task)


@contextmanager
def cells(what: str) -> Iterator[Report]:
    """A function of (cells done, all cells) that tells progress and speed, for `write_sweep`."""
    with progress(speed=True) as bar:
        task = bar.add_task(what, total=0, speed="")
        first: list[tuple[float, int]] = []

        def report(done: int, total: int) -> None:
            first.append((time.perf_counter(), done)) if not first else None
            (began, before), now = first[0], time.perf_counter()
            speed = f"cells, {(done - before) / (now - began):.3g}/s" if done > before else "cells"
            bar.update(task, completed=done, total=total, speed=speed)

        yield report


class Parts:
    """A bar over `count` parts, several of which may run side by side; it names those that do."""

    def __init__(self, bar: "Progress | Lines", count: int) -> None:
        self._bar, self._running, self._compiling = bar, dict[str, None](), True
        self._ended = threading.Event()
        self._task = bar.add_task("compiling", total=count)

    def __enter__(self) -> "Parts":
        threading.Thread(target=self._move, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def compiling(self, whether: bool) -> None:
        self._compiling = whether

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Around what a part does."""
        self._running[name] = None
        try:
            yield
        finally:
            del self._running[name]
            self._bar.advance(self._task)

    def _move(self) -> None:
        while not self._ended.wait(_TICK):
            names = ", ".join(dict(self._running))
            what = f"{'compiling' if self._compiling else 'solving'} {names}".rstrip()
            self._bar.update(self._task, description=what)
