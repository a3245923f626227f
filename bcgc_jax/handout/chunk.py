"""Some samples of a step, that one worker computes."""

from typing import NamedTuple


class Chunk(NamedTuple):
    """Some samples of a step, the same for whoever computes them.

    Attributes:
      step: its number, as it was asked for.
      subset, number: subset j of N, and its chunk.
      begin, end: from where to where in its subset, shares of 1.

    >>> Chunk(7, 2, 0, 0.25, 0.5).rows(num_samples=64, num_subsets=4)
    range(36, 40)
    """

    step: int
    subset: int
    number: int
    begin: float
    end: float

    def rows(self, num_samples: int, num_subsets: int) -> range:
        """Which of a step's M samples: subset j of N has those from j M/N to (j + 1)
        M/N, rounded.

        All chunks of a step have each sample once. ValueError where there are too few
        samples for a chunk.
        """
        first = round((self.subset + self.begin) * num_samples / num_subsets)
        last = round((self.subset + self.end) * num_samples / num_subsets)
        if first == last:
            raise ValueError(
                f"chunk {self.number} of subset {self.subset} has none of the "
                f"{num_samples} samples: take fewer chunks, or equal_chunks=True"
            )
        return range(first, last)

    @property
    def seed(self) -> tuple[int, int, int]:
        """For random numbers, the same whoever computes: add a seed of yours."""
        return self.step, self.subset, self.number
