"""Where the samples of each chunk lie among those that a worker stores."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from bcgc_jax.handout.client import Chunk, Share

# Edges of chunks are fractions with small denominators.
_LARGEST_DENOMINATOR = 10**6


class Place(NamedTuple):
    """Some samples of a worker: `size` of them, from `begin` on."""

    begin: int
    size: int


class Layout(NamedTuple):
    """The samples that workers store, in the order of `Share.held`.

    Attributes:
      places: of each worker, subset and chunk number.
      sizes: of a chunk, in samples, the largest first.
      rows: of each worker the step's samples that it stores, by number.
    """

    places: Mapping[tuple[int, int, int], Place]
    sizes: tuple[int, ...]
    rows: Mapping[int, list[int]]


def layout_of(shares: Mapping[int, Share], num_samples: int) -> Layout:
    """Lay out a step's samples for workers; ValueError where chunks of a kind differ in size."""
    _check(next(iter(shares.values())), num_samples)
    places = {}
    rows: dict[int, list[int]] = {}
    for worker, share in shares.items():
        rows[worker] = []
        for chunk in share.held:
            samples = chunk.rows(num_samples, share.num_workers)
            place = Place(len(rows[worker]), len(samples))
            places[worker, chunk.subset, chunk.number] = place
            rows[worker] += samples
    sizes = sorted({place.size for place in places.values()}, reverse=True)
    return Layout(places, tuple(sizes), rows)


def _check(share: Share, num_samples: int) -> None:
    unit = share.num_workers * math.lcm(*map(_denominator, share.own))
    if num_samples % unit or num_samples < 1:
        following = unit * max(1, math.ceil(num_samples / unit))
        raise ValueError(
            f"{num_samples} samples are not cut into chunks of whole samples, alike in all "
            f"subsets: take a multiple of {unit}, such as {following}"
        )


def _denominator(chunk: Chunk) -> int:
    return Fraction(chunk.end).limit_denominator(_LARGEST_DENOMINATOR).denominator
