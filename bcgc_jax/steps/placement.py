"""Who stores what in work sharing, and how its chunks are cut: what a coordinator must know."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from bcgc_jax.steps.chunk_lengths import LoadLine
from bcgc_jax.steps.chunk_tables import UNITS, chunk_sizes
from bcgc_jax.steps.storage import Storage, spread, whole_subsets


class Placement(NamedTuple):
    """N workers store as much as D subsets each, of C chunks.

    Attributes:
      num_workers: N.
      max_subsets: D, from 1, where nothing is shared, to N.
      chunks: C.
      equal_chunks: whether the last chunk of a subset stays whole; it does where nothing is shared.
      whole_subsets: whether workers store whole subsets, not chunks of many.
      load_line: predicts a chunk's seconds from its load; None: lengths are proportional to loads.

    >>> place = Placement(num_workers=5, max_subsets=2, chunks=3)
    >>> place.sizes, place.storage.holders[0][0]
    ((4, 4, 2, 1, 1), (0, 2))
    """

    num_workers: int
    max_subsets: int = 2
    chunks: int = 8
    equal_chunks: bool = False
    whole_subsets: bool = False
    load_line: LoadLine | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of a subset's chunks: `UNITS` for a whole one."""
        return chunk_sizes(self.chunks, self.equal_chunks or self.max_subsets == 1)

    @property
    def shares(self) -> list[float]:
        """The sizes of a subset's chunks: 1 for a whole one."""
        return [size / UNITS for size in self.sizes]

    @property
    def storage(self) -> Storage:
        place = whole_subsets if self.whole_subsets else spread
        return place(self.num_workers, self.max_subsets, len(self.sizes))

    def check(self) -> None:
        """Raise ValueError for numbers that are no such placement."""
        if not 1 <= self.max_subsets <= self.num_workers or self.chunks < 1:
            raise ValueError(
                f"{self.num_workers} workers store from 1 to {self.num_workers} subsets each, in 1 "
                f"chunk or more: got {self.max_subsets} subsets in {self.chunks} chunks"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Placement":
        """Read the plan that `bcgc advise --out` or `bcgc solve --out` wrote.

        Raises ValueError for a file that is no plan of work sharing, OSError where it cannot be
        read.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            rule = document["plan"]["completion"]
            if rule.pop("rule") != "WorkSharing":
                raise ValueError(f"it is a plan of {document['method']}")
            place = _placement_of(rule)
            place.check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no plan of work sharing, as `bcgc advise --out` writes it: {error}"
            ) from error
        return place


def _placement_of(rule: dict[str, Any]) -> Placement:
    names = Placement._fields[:-1]
    for name in names:
        kind = type(Placement._field_defaults.get(name, 1))
        if type(rule[name]) is not kind:
            raise ValueError(f"{name} must be of type {kind.__name__}, got {rule[name]!r}")
    line = None
    if rule.get("load_line") is not None:
        base, slope = rule["load_line"]
        line = LoadLine(float(base), float(slope), float(rule["usual_cost"]))
        if not line.usual > 0:
            raise ValueError(f"usual_cost must be above 0, got {line.usual}")
    return Placement(**{name: rule[name] for name in names}, load_line=line)
