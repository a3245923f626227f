"""Who stores which chunk of a step's data, on which host, and who may be absent."""

import functools
import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Storage(NamedTuple):
    """The data of a step are N subsets, one for each worker, and subset w is worker w's
    own.

    Attributes:
      holders: of each subset and each of its chunks the workers that store it, its
        owner first if it does; whole subsets have one chunk.
    """

    holders: tuple[tuple[tuple[int, ...], ...], ...]

    @classmethod
    def of_subsets(cls, stored: Sequence[Iterable[int]]) -> "Storage":
        """Of whole subsets: those that each worker stores.

        >>> Storage.of_subsets([(0, 1), (1, 2), (2, 0)]).holders
        (((0, 2),), ((1, 0),), ((2, 1),))
        """
        kept = list(map(frozenset, stored))
        workers = range(len(kept))

        def holders(subset: int) -> tuple[int, ...]:
            other_workers = [w for w in workers if subset in kept[w] and w != subset]
            if subset in kept[subset]:
                return (subset, *other_workers)
            return tuple(other_workers)

        return cls(tuple((holders(subset),) for subset in workers))

    @functools.lru_cache(maxsize=8)  # noqa: B019, of a tuple: nothing is kept alive but its key
    def chunks(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """What each worker stores: chunks, each a subset and a number there, its own
        subset first.

        >>> Storage((((0, 1),), ((1, 0),))).chunks()
        (((0, 0), (1, 0)), ((1, 0), (0, 0)))
        """
        stored: list[list[tuple[int, int]]] = [[] for _ in self.holders]
        for j, row in enumerate(self.holders):
            for c, holders in enumerate(row):
                for worker in holders:
                    stored[worker].append((j, c))
        for worker, worker_chunks in enumerate(stored):
            worker_chunks.sort(key=lambda chunk: chunk[0] != worker)
        return tuple(map(tuple, stored))


def least_alone(num_workers: int, max_subsets: int) -> np.ndarray:
    """N C(k, D) / C(N, D), `[N]`: mean number of subsets that only k workers store."""
    all_sets = math.comb(num_workers, max_subsets)
    sets = [math.comb(k, max_subsets) for k in range(1, num_workers + 1)]
    return np.array([num_workers * count / all_sets for count in sets])


_COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def missing(storage: Storage, present: Collection[int]) -> str:
    """What nobody present stores, in a sentence; nothing if all data are there.

    D subsets stored bear any D - 1 absent workers, and some sets of more.

    >>> storage = Storage((((0, 1), (0, 2)), ((1, 2), (1, 0)), ((2, 0), (2, 1))))
    >>> missing(storage, [1, 2])
    ''
    >>> missing(storage, [2]).partition(";")[0]
    'chunk 0 of subset 0 is stored by workers 0 and 1 alone, and both are absent'
    """
    present_workers = set(present)
    for subset, row in enumerate(storage.holders):
        lost = [
            chunk
            for chunk, holders in enumerate(row)
            if present_workers.isdisjoint(holders)
        ]
        if lost:
            holders = sorted(row[lost[0]])
            chunks = [chunk for chunk in lost if sorted(row[chunk]) == holders]
            verb = "are"
            if len(chunks) == 1:
                verb = "is"
            absent = len(storage.holders) - len(present_workers)
            return (
                f"{_named('chunk', chunks)} of subset {subset} {verb} stored by "
                f"{_named('worker', holders)} alone, and {_are_absent(len(holders))}; "
                f"store {_count(absent + 1)} subsets to bear any {_count(absent)}"
            )
    return ""


def _named(noun: str, numbers: list[int]) -> str:
    """Such as "chunks 2 and 5"."""
    *numerals, last = map(str, numbers)
    if numerals:
        return f"{noun}s {', '.join(numerals)} and {last}"
    return f"{noun} {last}"


def _are_absent(count: int) -> str:
    return {1: "it is absent", 2: "both are absent"}.get(count, "all are absent")


def _count(number: int) -> str:
    return _COUNTS.get(number, str(number))


def numbered(hosts: Sequence[Hashable]) -> tuple[int, ...]:
    """Hosts by number, in the order of their first workers.

    >>> numbered(["a", "b", "a"])
    (0, 1, 0)
    """
    numbers: dict[Hashable, int] = {}
    return tuple(numbers.setdefault(host, len(numbers)) for host in hosts)


def side_by_side(workers: Iterable[int], hosts: Sequence[int]) -> list[int]:
    """The workers in their order, but host by host, the largest host first.

    >>> side_by_side([3, 0, 1, 2, 4], (0, 1, 0, 1, 1))
    [3, 1, 4, 0, 2]
    """
    in_order = list(workers)
    place = {hosts[worker]: number for number, worker in enumerate(in_order)}
    size = Counter(hosts)
    return sorted(in_order, key=lambda w: (-size[hosts[w]], place[hosts[w]]))


@functools.cache
def by_hosts(hosts: tuple[int, ...], max_subsets: int, num_chunks: int) -> Storage:
    """As much as `max_subsets` subsets each, and the holders of a chunk on different
    hosts.

    Workers stand on a circle, those of a host side by side. With n the most workers of
    a host an offset from n to N - n leads to another host, for each worker. So D
    holders that are n apart are on D hosts, wherever n <= N / D; the rest of the circle
    is spread over the chunks of a subset.

    >>> by_hosts((0, 0, 1, 1), 2, 3).holders[0]
    ((0, 2), (0, 3), (0, 2))
    """
    workers = len(hosts)
    circle = sorted(range(workers), key=lambda worker: (hosts[worker], worker))
    place = {worker: number for number, worker in enumerate(circle)}
    size = Counter(hosts)
    first = {
        host: min(place[w] for w in range(workers) if hosts[w] == host) for host in size
    }
    apart = max(min(max(size.values()), workers // max_subsets), 1)
    free = workers - max_subsets * apart

    def holders(subset: int, chunk: int) -> tuple[int, ...]:
        stored = [subset]
        for k, offset in enumerate(_steps_aside(chunk, max_subsets, free), 1):
            position = (place[subset] + k * apart + offset) % workers
            if free < num_chunks:  # few offsets: chunks go round within the host too
                host = hosts[circle[position]]
                aside = position - first[host] + k * chunk
                position = first[host] + aside % size[host]
            while circle[position] in stored:  # only where a host has too many workers
                position = (position + 1) % workers
            stored.append(circle[position])
        return tuple(stored)

    chunks = range(num_chunks)
    return Storage(tuple(tuple(holders(j, c) for c in chunks) for j in range(workers)))


def on_one_host(storage: Storage, hosts: Sequence[int]) -> float:
    """The share of chunks with two holders on one host.

    >>> on_one_host(by_hosts((0, 0, 1, 1), 2, 3), (0, 0, 1, 1))
    0.0
    """
    chunks = [holders for row in storage.holders for holders in row]
    shared = sum(len({hosts[w] for w in holders}) < len(holders) for holders in chunks)
    return shared / len(chunks)


def _steps_aside(chunk: int, max_subsets: int, free: int) -> list[int]:
    """How far each other holder of a chunk stands beyond its distance, ascending."""
    turns = range(1, max_subsets)
    return sorted(int((chunk + 1) * 0.618 * k * (free + 1)) % (free + 1) for k in turns)
