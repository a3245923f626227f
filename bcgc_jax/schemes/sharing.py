"""Work sharing on a log: free workers that store more data get chunks."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

from bcgc_jax.schemes.base import FREE, Costs, Resources
from bcgc_jax.schemes.unplanned import Unplanned
from bcgc_jax.steps.chunk_lengths import lengths_of_pieces, ticks_of
from bcgc_jax.steps.lockstep import Chunks, handed_out
from bcgc_jax.steps.placement import Placement, chunk_tables
from bcgc_jax.steps.steps import Outcome, Steps

QUESTION = "a question for each chunk"
# Else the number.
_STORED = {"2": "two subsets", "3": "three subsets", "all": "all data"}


@dataclasses.dataclass(frozen=True)
class Sharing(Unplanned):
    """Chunks are handed out as `handout.serve` does, most left first.

    Attributes:
      subsets: in the name, what a worker stores: "2", "3" or "all".
      max_subsets: the same, as a number.
      by_length: whether workers send the lengths of their chunks.
      equal_chunks: whether the last chunk of a subset stays whole.
      costs: beside the passes.

    >>> Sharing("3", 3, by_length=True).name
    'sharing:3, lengths'
    """

    subsets: str
    max_subsets: int
    by_length: bool = False
    equal_chunks: bool = False
    costs: Costs = FREE

    word: ClassVar[str] = "sharing"
    by_chunk = advisable = asks = True

    @classmethod
    def rows(cls, resources: Resources) -> Iterator["Sharing"]:
        """With two subsets, three and all, by sizes and by lengths.

        >>> [
        ...     row.name
        ...     for row in Sharing.rows(
        ...         Resources(3, stored_subsets=2, know_lengths=True)
        ...     )
        ... ]
        ['sharing:2', 'sharing:2, lengths']
        """
        workers = resources.num_workers
        subsets = {str(number): number for number in (2, 3) if number < workers}
        for text, number in (subsets | {"all": workers}).items():
            for by_length in (False, True):
                is_known = resources.know_lengths or not by_length
                if number <= resources.most_subsets and is_known:
                    yield cls(text, number, by_length, costs=resources.costs)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.word}:{self.subsets}{', lengths' if self.by_length else ''}"

    @property
    def instead(self) -> "Sharing | None":
        """In equal chunks."""
        if self.equal_chunks:
            return None
        return dataclasses.replace(self, equal_chunks=True)

    @property
    def advice(self) -> str:  # type: ignore[override]
        by_length = ""
        if self.by_length:
            by_length = " by length"
        equal = ""
        if self.equal_chunks:
            equal = " in equal chunks"
        stored = _STORED.get(self.subsets, f"{self.subsets} subsets")
        return f"share the work{by_length}{equal}, with {stored} stored ({self.name})"

    def needs(self, choice: Sequence[float]) -> str:
        lengths = ""
        if self.by_length:
            lengths = "; lengths"
        return f"{QUESTION}{lengths}{'; equal chunks' if self.equal_chunks else ''}"

    def stored_subsets(self, choice: Sequence[float], num_workers: int) -> int:
        return self.max_subsets

    def outcome(self, steps: Steps) -> Outcome:
        """Lengths are sent as a worker begins: all are known, for all begin at once."""
        count, workers, chunks = steps.lengths.shape
        place = Placement(
            workers, self.max_subsets, chunks, self.equal_chunks, hosts=steps.hosts
        )
        sizes = place.sizes
        lengths = lengths_of_pieces(steps.lengths, sizes, self.costs.of_chunk).reshape(
            count, -1
        )
        ticks = None
        if self.by_length:
            assert steps.costs is not None
            predicted = lengths_of_pieces(steps.costs, sizes).reshape(count, -1)
            ticks = ticks_of(predicted, steps.costs.mean())
        asked = Chunks(steps.pace, lengths, steps.pauses, ticks)
        tables = chunk_tables(place.storage, sizes)
        return Outcome(handed_out(tables, asked, self.costs.asking))
