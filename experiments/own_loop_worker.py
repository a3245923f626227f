"""Run a worker of `experiments.own_loop`: it sleeps for each chunk, and adds integers.

The worker does not import JAX, so that eight workers start quickly.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import numpy as np

from bcgc_jax.balancing import dispatch
from bcgc_jax.balancing.dispatch import Chunk

CHUNKS = 8  # of a subset
SAMPLES = 1024  # of a step
DATA = np.random.default_rng(0).integers(0, 2**40, SAMPLES)


def paces(law: str, seed: int, steps: int, workers: int, subset: float) -> np.ndarray:
    """Draw seconds of workers for a subset, `[steps, workers]`; mean `subset`."""
    rng = np.random.default_rng(seed)
    shape = (steps, workers)
    match law:
        case "exponential":
            return subset * (1 / 3 + rng.exponential(2 / 3, shape))
        case "two speeds":
            return subset / 1.5 * np.where(rng.random(shape) < 1 / 8, 5.0, 1.0)
        case "one in seven":
            return subset * np.where(rng.random(shape) < 1 / 7, 5.0, 1.0)
        case "lognormal":
            return subset * rng.lognormal(-0.32, 0.8, shape)
        case "equal" | "heavy tails":
            return np.full(shape, subset)
    raise ValueError(f"there is no law {law!r}")


def lengths(law: str, seed: int, steps: int, workers: int) -> np.ndarray:
    """Draw the lengths of whole chunks, 1 on average, `[steps, workers, CHUNKS]`."""
    shape = steps, workers, CHUNKS
    if law == "heavy tails":
        drawn = np.random.default_rng([seed, 1]).pareto(2.2, shape) + 0.2
        return drawn / drawn.mean()
    return np.ones(shape)


def length_of(of_step: np.ndarray, chunk: Chunk) -> float:
    """The length of a chunk, or of a part of one; `of_step` is `[N, CHUNKS]`."""
    whole = int(chunk.begin * CHUNKS)
    return float(of_step[chunk.subset, whole] * (chunk.end - chunk.begin) * CHUNKS)


def without_sharing(rank: int, workers: int) -> Callable[[int], Iterator[Chunk]]:
    """A worker's own subset, nobody is asked."""
    edges = np.arange(CHUNKS + 1) / CHUNKS

    def step(step: int) -> Iterator[Chunk]:
        return (Chunk(step, rank, c, edges[c], edges[c + 1]) for c in range(CHUNKS))

    return step


class AllReduce:
    """Process 0 adds up whole numbers, and tells the others."""

    def __init__(self, rank: int, workers: int, port: int, key: bytes) -> None:
        self._lines: list[Connection] = []
        if rank == 0:
            with Listener(
                ("127.0.0.1", port), backlog=workers, authkey=key
            ) as listener:
                self._lines = [listener.accept() for _ in range(workers - 1)]
            return
        while not self._lines:
            try:
                self._lines = [Client(("127.0.0.1", port), authkey=key)]
            except ConnectionRefusedError:
                time.sleep(0.02)
        self._rank = rank

    def __call__(self, value: int) -> int:
        if hasattr(self, "_rank"):
            self._lines[0].send(value)
            return int(self._lines[0].recv())
        total = value + sum(line.recv() for line in self._lines)
        for line in self._lines:
            line.send(total)
        return total


def train(spec: dict[str, Any]) -> list[float]:
    """Seconds of each step, from the end of the one before."""
    rank = spec["rank"]
    workers = spec["workers"]
    key = os.environ["BCGC_HANDOUT_KEY"].encode()
    table = paces(spec["law"], spec["seed"], spec["steps"], workers, spec["subset"])
    own_paces = table[:, rank]
    drawn = lengths(spec["law"], spec["seed"], spec["steps"], workers)
    chunks = without_sharing(rank, workers)
    if spec["address"] is not None:
        share = dispatch.join(tuple(spec["address"]), rank)
        chunks = share.step
        if spec.get("sends_lengths"):

            def chunks(step):
                return share.step(step, [length_of(drawn[step], c) for c in share.own])

    all_reduce = AllReduce(rank, workers, spec["port"], key)
    all_reduce(0)
    ends = [time.perf_counter()]
    for step, pace in enumerate(own_paces):
        total = 0
        for chunk in chunks(step):
            # The fixed part of a piece is that of a whole chunk.
            fixed_seconds = spec["fixed"] * (1 - CHUNKS * (chunk.end - chunk.begin))
            time.sleep(pace / CHUNKS * (length_of(drawn[step], chunk) + fixed_seconds))
            total += int(DATA[list(chunk.rows(SAMPLES, workers))].sum())
        if all_reduce(total) != DATA.sum():
            raise RuntimeError(f"step {step} has a wrong sum")
        ends.append(time.perf_counter())
    return np.diff(ends).tolist()


if __name__ == "__main__":
    print(json.dumps(train(json.loads(sys.argv[1]))))
