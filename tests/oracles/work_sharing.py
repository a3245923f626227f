"""Ends of steps by work sharing, in fractions, an event at a time; `python -m` writes
the vectors.

Two workers store each chunk. The rule is written out here once more, without the
package.
"""

import csv
import sys
from fractions import Fraction
from pathlib import Path

VECTORS = Path(__file__).with_suffix(".csv")


def sizes_of(chunks: int, equal: bool) -> list[int]:
    return [4] * chunks if equal else [4] * (chunks - 1) + [2, 1, 1]


def offsets_of(workers: int, chunks: int) -> list[int]:
    """Where a chunk's other holder stands on the circle of workers."""
    half = sorted(range(1, (workers - 1) // 2 + 1), key=lambda o: (0.618 * o) % 1)
    middle = [workers // 2] if workers % 2 == 0 else []
    offsets = half + middle + [workers - o for o in half]
    return [offsets[c % len(offsets)] for c in range(chunks)]


def end_of_step(times: list[Fraction], sizes: list[int]) -> Fraction:
    """When the last chunk ends; `times` are seconds for a unit of size."""
    workers = range(len(times))
    offsets = offsets_of(len(times), len(sizes))
    holders = {
        (j, c): (j, (j + o) % len(times))
        for j in workers
        for c, o in enumerate(offsets)
    }
    left = dict.fromkeys(holders)
    last: dict[int, Fraction] = {}  # of each worker's last chunk, for a unit of size
    running: dict[int, tuple[Fraction, int]] = {}  # since when, and what size
    until = dict.fromkeys(workers, Fraction(0))
    end = Fraction(0)
    while until:
        now = min(until.values())
        worker = min(w for w in until if until[w] == now)
        for w in [w for w in running if until[w] == now]:
            since, size = running.pop(w)
            last[w] = (now - since) / size

        def pace(w: int, now: Fraction = now) -> Fraction:
            if not last:
                return Fraction(1)
            expected = last.get(w, sum(last.values(), Fraction(0)) / len(last))
            since, size = running.get(w, (now, 1))
            return max(expected, (now - since) / size)

        def key(
            chunk: tuple[int, int], worker: int = worker
        ) -> tuple[Fraction, int, bool]:
            (second_holder,) = {*holders[chunk]} - {worker}
            ahead = sum(sizes[c] for j, c in left if second_holder in holders[j, c])
            size = sizes[chunk[1]]
            return size * ahead * pace(second_holder), size, chunk[0] == worker

        stored = [chunk for chunk in left if worker in holders[chunk]]
        if not stored:
            del until[worker]
            continue
        chunk = max(stored, key=key)  # of equal ones the first
        del left[chunk]
        size = sizes[chunk[1]]
        running[worker] = now, size
        until[worker] = now + size * times[worker]
        end = max(end, until[worker])
    return end


def main() -> None:
    rows = list(csv.DictReader(VECTORS.read_text().splitlines()))
    for row in rows:
        chunks = int(row["chunks"])
        times = [Fraction(t) / (4 * chunks) for t in row["cycle_times"].split()]
        end = end_of_step(times, sizes_of(chunks, row["equal"] == "1"))
        row["ends"] = f"{float(end):.9g}"
    writer = csv.DictWriter(sys.stdout, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    main()
