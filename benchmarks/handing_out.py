"""Chunks that one master hands out: beside a server that answers each question with what it was asked."""

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
from typing import Any

import numpy as np

from bcgc_jax.cluster.chunks import Place
from bcgc_jax.cluster.shared_round import Desk, SharedRound
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.handout.line import Line
from bcgc_jax.handout.messages import Question, answer_of
from bcgc_jax.handout.server import Server
from bcgc_jax.plans.sharing import WorkSharing
from benchmarks.timing import compare, result_row

_WORKERS = 4, 16, 64
_REPEATS = 10


def questions() -> list[dict[str, Any]]:
    """Chunks that take no time, sharing:2:8: N = 4, 16 and 64 workers that ask without a pause."""
    return [_row(workers) for workers in _WORKERS]


def _row(workers: int) -> dict[str, Any]:
    plan, steps = SharedPlan(WorkSharing(workers, 2, 8)), itertools.count(1)
    chunks = workers * len(plan.sizes)
    with contextlib.ExitStack() as stack:
        ask = stack.enter_context(_asking(workers, chunks))
        desk = stack.enter_context(contextlib.closing(Desk("127.0.0.1")))
        echo = stack.enter_context(contextlib.closing(Server(_Echo())))
        place = Place(*echo.address, echo.key)
        package = functools.partial(_step, plan, desk, steps, ask)
        found = compare({"package": package, "peer": functools.partial(ask, place, 0)}, _REPEATS)
    rate = chunks / found["package"].seconds["median"]
    answer = statistics.median(found["package"].value)
    what = f"a step, chunks of no time, N={workers}"
    accuracy = f"{rate:.0f} chunks a second; an answer in {1e3 * answer:.2f} ms, the median"
    figures = {"chunks_a_second": rate, "answer": answer}
    against = "a server that decides nothing"
    return result_row("questions", what, found, accuracy, figures, against=against, dtype="float32")


class _Echo:
    def asked(self, message: Any, reply: Callable[[Any], None]) -> None:
        reply([None, [], message[2], [0, 0], None, False])

    def left(self, reply: Callable[[Any], None]) -> None:
        pass

    def look(self) -> float:
        return math.inf


def _step(plan: SharedPlan, desk: Desk, steps: Iterator[int], ask: Callable[..., Any]) -> Any:
    """Seconds of each answer."""
    params, step = {"w": np.zeros(1, np.float32)}, next(steps)
    one = SharedRound(plan, params, step, step, None, None, desk.place, desk.touch)
    for worker in range(plan.num_workers):
        one.begin(worker, 0.0)
    desk.serve(one, time.monotonic())
    found = ask(desk.place, step)
    one.end()
    return found


@contextlib.contextmanager
def _asking(workers: int, chunks: int) -> Iterator[Callable[[Place, int], Any]]:
    """A process in which all workers ask; of a step until all chunks are done, they ask so often."""
    context = multiprocessing.get_context("spawn")
    mine, others = context.Pipe()
    process = context.Process(target=_ask_for_all, args=(others, workers, chunks), daemon=True)
    process.start()

    def ask(place: Place, step: int) -> Any:
        mine.send((place, step))
        return mine.recv()

    try:
        yield ask
    finally:
        process.terminate()
        process.join()


def _ask_for_all(orders: Connection, workers: int, chunks: int) -> None:
    lines: dict[Place, list[Line]] = {}
    while True:
        place, step = orders.recv()
        if place not in lines:
            lines[place] = [Line((place.host, place.port), place.key) for _ in range(workers)]
        orders.send(_asked(lines[place], step, chunks))


def _asked(lines: list[Line], step: int, chunks: int) -> list[float]:
    """Each line asks again as soon as it has an answer; the seconds of the answers."""
    seconds, began, done = list[float](), [0.0] * len(lines), 0
    with selectors.DefaultSelector() as waiting:
        for worker, line in enumerate(lines):
            waiting.register(line, selectors.EVENT_READ, worker)
            began[worker] = time.perf_counter()
            line.send(Question(step, worker, 0))
        while done < chunks:
            for key, _ in waiting.select():
                worker, line = key.data, lines[key.data]
                answer = answer_of(line.receive())
                seconds.append(time.perf_counter() - began[worker])
                done += answer.chunk is not None
                if answer.chunk is not None:
                    began[worker] = time.perf_counter()
                    line.send(Question(step, worker, 0, answer.ticket, 1e-3))
        return seconds
