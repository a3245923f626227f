"""Chunks that one coordinator hands out to workers that ask without a pause."""

import contextlib
import functools
import itertools
import math
import multiprocessing
import selectors
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from bcgc_jax.cluster.chunks import Place
from bcgc_jax.cluster.shared_round import SharedRound
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.handout.coordinator import Coordinator, serve
from bcgc_jax.handout.line import TcpLine
from bcgc_jax.handout.messages import Answer, Begin, Done, Join, answer_of, data_of
from bcgc_jax.handout.transport import Tcp
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.steps.placement import Placement
from benchmarks.compiled import turns
from benchmarks.timing import compare, result_row

# Workers, and what each stores.
_SETTINGS = (4, 2), (16, 2), (64, 2)
# Where a worker stores many chunks, or all.
_MORE_STORED = (256, 3), (32, 32)
_REPEATS = 10
# Seconds that a worker computes before it asks: by then a processor has gone to sleep.
_PAUSE = 5e-3
_TCP = Tcp(key=b"key")


def questions() -> list[dict[str, Any]]:
    """Chunks of no time, 8 a subset: all ask at once, or one alone, at once or not."""
    of_loops = [
        _row(*setting, "your own loop", _of_loops)
        for setting in _SETTINGS + _MORE_STORED
    ]
    slowly = functools.partial(_of_loops, pause=_PAUSE)
    alone = [
        _row(1, 1, "your own loop", _of_loops),
        _row(1, 1, f"your own loop, {1e3 * _PAUSE:g} ms before each question", slowly),
    ]
    of_clusters = [_row(*setting, "a cluster", _of_a_cluster) for setting in _SETTINGS]
    return of_clusters + of_loops + alone + turns()


class _Asked(NamedTuple):
    """A step's cost: seconds of each answer, and of this processor for each chunk."""

    answers: list[float]
    processor: float


def _row(
    workers: int, stored: int, whose: str, steps_of: Callable[..., Any]
) -> dict[str, Any]:
    """Measure without a peer, or with a server that returns questions as answers."""
    chunks = workers * len(Placement(workers, stored).sizes)
    with _asking(workers, chunks) as ask, steps_of(workers, stored, ask) as functions:
        results = compare(
            {
                name: functools.partial(_counted, step, chunks)
                for name, step in functions.items()
            },
            _REPEATS,
        )
    rate = chunks / results["package"].seconds["median"]
    answers, processor = results["package"].value
    answer = statistics.median(answers)
    what = f"a step of {whose}, chunks of no time, N={workers}, D={stored}"
    accuracy = (
        f"{rate:.0f} chunks a second; an answer in {1e3 * answer:.2f} ms, the median; "
        f"{1e6 * processor:.0f} µs of the processor a chunk"
    )
    figures = {"chunks_a_second": rate, "answer": answer, "processor": processor}
    against = ""
    if "peer" in results:
        against = "a server that decides nothing"
    return result_row(
        "questions", what, results, accuracy, figures, against=against, dtype="float32"
    )


def _counted(step: Callable[[], list[float]], chunks: int) -> _Asked:
    began = time.process_time()
    answers = step()
    return _Asked(answers, (time.process_time() - began) / chunks)


@contextlib.contextmanager
def _of_a_cluster(workers: int, stored: int, ask: Callable[..., Any]) -> Iterator[Any]:
    plan = SharedPlan(WorkSharing(workers, stored, 8))
    steps = itertools.count(1)
    with (
        Coordinator(_TCP) as coordinator,
        contextlib.closing(_TCP.listen(_Echo())) as echo,
    ):
        peer = functools.partial(ask, Place(echo.address, _TCP), 0)
        yield {
            "package": functools.partial(_step, plan, coordinator, steps, ask),
            "peer": peer,
        }


@contextlib.contextmanager
def _of_loops(
    workers: int, stored: int, ask: Callable[..., Any], pause: float = 0.0
) -> Iterator[Any]:
    steps = itertools.count()
    with serve(workers, stored, transport=_TCP, adapt=False) as coordinator:
        place = Place(coordinator.address, _TCP)
        yield {"package": lambda: ask(place, next(steps), pause)}


class _Echo:
    def asked(self, message: Any, reply: Callable[[Any], None]) -> None:
        reply(Answer((0, 0), (0, 0)))

    def left(self, reply: Callable[[Any], None]) -> None:
        pass

    def look(self) -> float:
        return math.inf


def _step(
    plan: SharedPlan,
    coordinator: Coordinator,
    steps: Iterator[int],
    ask: Callable[..., Any],
) -> Any:
    """Seconds of each answer."""
    params = {"w": np.zeros(1, np.float32)}
    step = next(steps)
    place = Place(coordinator.address, _TCP)
    round_ = SharedRound(plan, params, step, step, None, None, place, coordinator.touch)
    for worker in range(plan.num_workers):
        round_.begin(worker, 0.0)
    coordinator.serve(round_, time.monotonic())
    answers = ask(place, step)
    round_.end()
    return answers


@contextlib.contextmanager
def _asking(workers: int, chunks: int) -> Iterator[Callable[..., Any]]:
    """Let all workers ask in one process, as often as a step of `chunks` needs."""
    context = multiprocessing.get_context("spawn")
    connection, workers_connection = context.Pipe()
    process = context.Process(
        target=_ask_for_all, args=(workers_connection, workers, chunks), daemon=True
    )
    process.start()

    def ask(place: Place, step: int, pause: float = 0.0) -> Any:
        connection.send((place, step, pause))
        return connection.recv()

    try:
        yield ask
    finally:
        process.terminate()
        process.join()


def _ask_for_all(orders: Connection, workers: int, chunks: int) -> None:
    lines: dict[Place, list[TcpLine]] = {}
    while True:
        place, step, pause = orders.recv()
        if place not in lines:
            lines[place] = [TcpLine(place.address, _TCP.key) for _ in range(workers)]
            for worker, line in enumerate(lines[place]):
                line.ask(data_of(Join(worker)))
        else:
            for line in lines[place]:
                line.receive()  # that the step before is over, or which sum to send
        orders.send(_asked(lines[place], step, chunks, pause))


def _asked(lines: list[TcpLine], step: int, chunks: int, pause: float) -> list[float]:
    """Each line asks again as soon as it has an answer; the seconds of the answers."""
    seconds = list[float]()
    began = [0.0] * len(lines)
    done = 0
    with selectors.DefaultSelector() as waiting:
        for worker, line in enumerate(lines):
            waiting.register(line, selectors.EVENT_READ, worker)
            began[worker] = time.perf_counter()
            line.send(data_of(Begin(step)))
        while done < chunks:
            for key, _ in waiting.select():
                worker = key.data
                line = lines[key.data]
                ticket = answer_of(line.receive()).ticket
                seconds.append(time.perf_counter() - began[worker])
                if pause:
                    time.sleep(pause)
                done += 1
                began[worker] = time.perf_counter()
                line.send(data_of(Done(ticket or (0, 0), 1e-3)))
        return seconds
