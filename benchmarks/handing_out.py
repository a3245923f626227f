"""Measure how many chunks one coordinator dispatches to workers that never pause."""

import contextlib
import functools
import itertools
import multiprocessing
import selectors
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from bcgc_jax.balancing.dispatch.coordinator import serve
from bcgc_jax.balancing.dispatch.line import TcpLine
from bcgc_jax.balancing.dispatch.messages import Begin, Done, Join, answer_of, data_of
from bcgc_jax.balancing.dispatch.transport import Tcp
from bcgc_jax.balancing.placement import Placement
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

Address = tuple[str, int]


def questions() -> list[dict[str, Any]]:
    """Chunks of no time, 8 a subset: all ask at once, or one alone, at once or not."""
    of_loops = [_row(*setting) for setting in _SETTINGS + _MORE_STORED]
    return [*of_loops, _row(1, 1), _row(1, 1, _PAUSE), *turns()]


class _Asked(NamedTuple):
    """A step's cost: seconds of each answer, and of this processor for each chunk."""

    answers: list[float]
    processor: float


def _row(workers: int, stored: int, pause: float = 0.0) -> dict[str, Any]:
    chunks = workers * len(Placement(workers, stored).sizes)
    steps = itertools.count()
    coordinator = serve(workers, stored, transport=_TCP, adapt=False)
    with coordinator, _asking(workers, chunks) as ask:

        def step() -> list[float]:
            return ask(coordinator.address, next(steps), pause)

        counted = functools.partial(_counted, step, chunks)
        results = compare({"package": counted}, _REPEATS)
    rate = chunks / results["package"].seconds["median"]
    answers, processor = results["package"].value
    answer = statistics.median(answers)
    before = f", {1e3 * pause:g} ms before each question" if pause else ""
    what = (
        f"a step of your own loop{before}, chunks of no time, N={workers}, D={stored}"
    )
    accuracy = (
        f"{rate:.0f} chunks a second; an answer in {1e3 * answer:.2f} ms, the median; "
        f"{1e6 * processor:.0f} µs of the processor a chunk"
    )
    figures = {"chunks_a_second": rate, "answer": answer, "processor": processor}
    return result_row("questions", what, results, accuracy, figures, dtype="float32")


def _counted(step: Callable[[], list[float]], chunks: int) -> _Asked:
    began = time.process_time()
    answers = step()
    return _Asked(answers, (time.process_time() - began) / chunks)


@contextlib.contextmanager
def _asking(workers: int, chunks: int) -> Iterator[Callable[..., Any]]:
    """Let all workers ask in one process, as often as a step of `chunks` needs."""
    context = multiprocessing.get_context("spawn")
    connection, workers_connection = context.Pipe()
    process = context.Process(
        target=_ask_for_all, args=(workers_connection, workers, chunks), daemon=True
    )
    process.start()

    def ask(address: Address, step: int, pause: float = 0.0) -> Any:
        connection.send((address, step, pause))
        return connection.recv()

    try:
        yield ask
    finally:
        process.terminate()
        process.join()


def _ask_for_all(orders: Connection, workers: int, chunks: int) -> None:
    lines: dict[Address, list[TcpLine]] = {}
    while True:
        address, step, pause = orders.recv()
        if address not in lines:
            lines[address] = [TcpLine(address, _TCP.key) for _ in range(workers)]
            for worker, line in enumerate(lines[address]):
                line.ask(data_of(Join(worker)))
        else:
            for line in lines[address]:
                line.receive()  # that the step before is over, or which sum to send
        orders.send(_asked(lines[address], step, chunks, pause))


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
