"""Data that never passes through the master: a function of a subset's number, called where the subset is."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bcgc_jax.coding.gradients import PyTree

# (j, N) to subset j of N, a pytree of arrays `[m, …]`: from a file, a database, a generator.
Source = Callable[[int, int], PyTree]


class Made(NamedTuple):
    """Subset `number` of `total`, to be made by `source` on the worker; `name` is the source's own."""

    source: Source
    name: int
    number: int
    total: int


class Shelf:
    """What a worker has made, kept for its next plan as far as that needs it."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int, int], PyTree] = {}

    def take(self, wanted: Mapping[int, Any], fetched: Callable[[Any], PyTree]) -> dict[int, PyTree]:
        """The subsets by number: those to be made are, once, others are `fetched`; the rest is forgotten."""
        found, kept = {}, {}
        for j, data in wanted.items():
            if not isinstance(data, Made):
                found[j] = fetched(data)
                continue
            key = data.name, data.number, data.total
            if key not in self._kept:
                made = jax.tree.map(np.asarray, data.source(data.number, data.total))
                if not jax.tree.leaves(made) or not all(np.ndim(leaf) for leaf in jax.tree.leaves(made)):
                    raise ValueError(
                        f"the function that makes the data returned no arrays of samples for subset {j} of "
                        f"{data.total}, but {made!r:.60}: it must return a pytree of arrays [m, …]"
                    )
                self._kept[key] = made
            found[j] = kept[key] = self._kept[key]
        self._kept = kept
        return found
