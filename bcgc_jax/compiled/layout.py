"""Where the samples of each chunk lie among those that a worker stores."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from bcgc_jax.handout.client import Chunk, Share


class Place(NamedTuple):
    """Some samples of a worker: `size` of them, from `begin` on."""

    begin: int
    size: int


class Layout(NamedTuple):
    """The samples that workers store, in the order of `Share.held`.

    Attributes:
      num_samples, num_subsets: of a step.
      begins: where the samples of each worker, subset and chunk number begin.
      sizes: of a chunk, in samples, the largest first.
      rows: of each worker the step's samples that it stores, by number.
    """

    num_samples: int
    num_subsets: int
    begins: Mapping[tuple[int, int, int], int]
    sizes: tuple[int, ...]
    rows: Mapping[int, list[int]]

    def place(self, worker: int, chunk: Chunk) -> Place:
        """Where a worker has a chunk; the pieces of a whole one follow each other."""
        begin = self.begins[worker, chunk.subset, chunk.number]
        return Place(begin, len(chunk.rows(self.num_samples, self.num_subsets)))

    def check(self, num_rows: int) -> None:
        """Raise ValueError where a worker is passed other rows than those it stores.

        Workers of a process may store unequal numbers, by hosts: all pass as many as
        the most. Those of other processes may store more.
        """
        most_rows = max(map(len, self.rows.values()))
        if num_rows < most_rows or (
            num_rows > most_rows and len(self.rows) == self.num_subsets
        ):
            raise ValueError(
                f"stored has {num_rows} rows for each worker, and {most_rows} are "
                "needed: the rows of `shared.rows`, those of its own subset and chunks "
                "of others"
            )


def layout_of(shares: Mapping[int, Share], num_samples: int) -> Layout:
    """Lay out a step's samples; ValueError where chunks of a kind differ in size."""
    first = next(iter(shares.values()))
    _check(first, num_samples)
    begins = {}
    sizes = {num_samples // (first.num_workers * first.num_chunks)}
    rows: dict[int, list[int]] = {}
    for worker, share in shares.items():
        rows[worker] = []
        for chunk in share.held:
            samples = chunk.rows(num_samples, share.num_workers)
            begins[worker, chunk.subset, chunk.number] = len(rows[worker])
            sizes.add(len(samples))
            rows[worker] += samples
    by_size = tuple(sorted(sizes, reverse=True))
    return Layout(num_samples, first.num_workers, begins, by_size, rows)


def _check(share: Share, num_samples: int) -> None:
    unit = share.num_workers * math.lcm(*map(_denominator, share.own))
    if num_samples % unit or num_samples < 1:
        following = unit * max(1, math.ceil(num_samples / unit))
        raise ValueError(
            f"{num_samples} samples are not cut into chunks of whole samples, alike in "
            f"all subsets: take a multiple of {unit}, such as {following}"
        )


def _denominator(chunk: Chunk) -> int:
    # Edges of chunks are fractions with small denominators.
    return Fraction(chunk.end).limit_denominator().denominator
