"""Compares the rows that several workers store for the same chunk."""

from collections.abc import Sequence


class Copies:
    """Checksums of the copies of a step's chunks, as workers have sent them.

    Copies are compared only with copies of the same step, because each step has other
    rows.

    >>> copies = Copies()
    >>> copies.difference(rank=0, step=3, checksums=[[1, 0, 77]])
    ''
    >>> copies.difference(rank=2, step=3, checksums=[[1, 0, 78]])[:54]
    'worker 2 stores other rows for chunk 0 of subset 1 tha'
    >>> copies.difference(rank=2, step=4, checksums=[[1, 0, 78]])
    ''
    """

    def __init__(self) -> None:
        self._step = -1
        # The rank and the checksum of the first copy of each chunk.
        self._first: dict[tuple[int, int], tuple[int, int]] = {}

    def difference(
        self, rank: int, step: int, checksums: Sequence[Sequence[int]]
    ) -> str:
        """Name a copy of this worker that differs from the copy of another worker.

        Args:
          rank: The rank of the worker.
          step: The number of the step.
          checksums: Of each chunk that the worker stores, its subset, its number there
            and the checksum of its rows.

        Returns:
          What differs and what to do, or an empty string if nothing differs.
        """
        if step != self._step:
            self._step = step
            self._first = {}
        for subset, number, checksum in checksums:
            other_rank, other_checksum = self._first.setdefault(
                (subset, number), (rank, checksum)
            )
            if checksum != other_checksum:
                return (
                    f"worker {rank} stores other rows for chunk {number} of subset "
                    f"{subset} than worker {other_rank} in step {step}. Pass the "
                    "arrays that `shared.place(batch)` returns, with the same batch in "
                    "all processes"
                )
        return ""
