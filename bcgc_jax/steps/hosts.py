"""Storage where workers of a host are slow together: holders on other hosts."""

import functools
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from bcgc_jax.steps.storage import Storage


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
