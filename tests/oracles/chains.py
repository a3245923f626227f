"""Steps one after the other, worker by worker and piece by piece, in plain Python."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

# Times that differ by no more are the same.
_SAME = 1e-9


class Piece(NamedTuple):
    """What a worker does in one piece: `cycles` times its pace, and `pause` seconds.

    Then `task` is done.
    """

    cycles: float
    pause: float = 0.0
    task: int | None = None


def chain(
    pieces: Sequence[Sequence[Piece]],
    complete: Callable[[set[tuple[int, int]]], bool],
    starts: Sequence[Sequence[float]],
    times: Sequence[Sequence[float]],
    link: Sequence[float] | None = None,
) -> tuple[list[float], list[list[float]]]:
    """The runtime of each step, and how late each worker is for the next one.

    `complete` says whether these (worker, task) are enough. `link`: the seconds in
    which each task is sent while the worker goes on.
    """
    late = [0.0] * len(pieces)
    runtimes: list[float] = []
    overruns: list[list[float]] = []
    for start, time in zip(starts, times, strict=True):
        ends: list[list[float]] = []
        events: list[tuple[float, int, int]] = []
        for w, worker_pieces in enumerate(pieces):
            clock = sent = late[w] + start[w]
            worker_ends: list[float] = []
            for piece in worker_pieces:
                clock += time[w] * piece.cycles + piece.pause
                worker_ends.append(clock)
                if piece.task is not None:
                    sent = max(sent, clock) + (link[piece.task] if link else 0.0)
                    events.append((sent, w, piece.task))
            ends.append(worker_ends)
        done: set[tuple[int, int]] = set()
        runtime = 0.0
        for clock, w, task in sorted(events):
            done.add((w, task))
            runtime = clock
            if complete(done):
                break
        for w, worker_ends in enumerate(ends):
            coming = [end for end in worker_ends if end > runtime + _SAME]
            if late[w] + start[w] > runtime + _SAME:
                coming = [late[w]]
            late[w] = max(min(coming, default=runtime) - runtime, 0.0)
        runtimes.append(runtime)
        overruns.append(list(late))
    return runtimes, overruns


def in_order(
    data: Sequence[int],
    sizes: Sequence[float],
    setup: float = 0.0,
    passing: float = 0.0,
    send: float = 0.0,
    parts: int = 1,
) -> list[Piece]:
    """Block after block on so many subsets, known ones first, each in `parts`.

    0 parts: a whole block with its message. The first pass over a subset has the setup,
    and goes through the blocks before.
    """
    reached, before = 0, 0.0
    pieces: list[Piece] = []
    for task, (count, size) in enumerate(zip(data, sizes, strict=True)):
        if not size:
            continue
        passes: list[float] = []
        for subset in range(count):
            fresh = subset >= reached
            passes.append(
                size + passing * size + (setup + passing * before if fresh else 0.0)
            )
        reached = max(reached, count)
        before = before + size
        if not parts:
            pieces.append(Piece(sum(passes), send * size, task))
            continue
        cut = [cycles / parts for cycles in passes for _ in range(parts)]
        pieces += [Piece(cycles) for cycles in cut[:-1]]
        pieces.append(Piece(cut[-1], task=None if send else task))
        if send:
            pieces.append(Piece(0.0, send * size, task))
    return pieces


def around_circle(
    order: Sequence[tuple[int, int]],
    sizes: Sequence[float],
    setup: float = 0.0,
    passing: float = 0.0,
) -> list[Piece]:
    """Task after task, (subset, block) each.

    The blocks that a subset's pass goes through for the first time cost `passing`.
    """
    reached: dict[int, float] = {}
    pieces: list[Piece] = []
    for task, (subset, block) in enumerate(order):
        end = sum(sizes[: block + 1])
        cycles = sizes[block] + (0.0 if subset in reached else setup)
        cycles += passing * max(end - reached.get(subset, 0.0), 0.0)
        reached[subset] = max(end, reached.get(subset, 0.0))
        pieces.append(Piece(cycles, task=task))
    return pieces
