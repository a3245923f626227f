"""What a profiler has recorded of one rank."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

TORCH = "traces of the PyTorch profiler"
JAX = "traces of jax.profiler"
IN_ONE_JIT = (
    "No trace shows the microbatches within one jit, such as those of a `lax.scan`, so "
    "no --chunk-name finds them. The coordinator's record shows them if the work is "
    "shared: `dispatch.serve(…, record=FILE)` (docs/own-loop.md), in a compiled "
    "program with `SharedWork(mesh, shares=…)` (docs/compiled.md)."
)
# Names that are listed where the right one is not among them.
_LISTED = 5


class Recording(NamedTuple):
    """Collectives and chunks of one rank, in seconds of its own clock.

    Attributes:
      rank: its name.
      step: the number of the step of each collective, `[C]`, in the order of time.
      end: of each collective, `[C]`.
      exposed: seconds of each collective beside no computation, `[C, 2]`: with gaps as
        waits, and as work.
      chunk_step: the number of the step of each chunk, `[M]`; none where chunks are not
        known.
      begin: of each chunk, `[M]`, in the order of time.
      forward: seconds of each chunk's forward pass, `[M]`; NaN where they are not
        known.
    """

    rank: str
    step: np.ndarray
    end: np.ndarray
    exposed: np.ndarray
    chunk_step: np.ndarray
    begin: np.ndarray
    forward: np.ndarray

    def numbered(self, shift: int) -> "Recording":
        """The same with higher step numbers."""
        return self._replace(step=self.step + shift, chunk_step=self.chunk_step + shift)

    def releases(self) -> dict[int, float]:
        """When each step's last collective ends: all ranks leave that together."""
        return dict(zip(self.step.tolist(), self.end.tolist(), strict=True))


def joined(recordings: Sequence[Recording]) -> list[Recording]:
    """Join recordings of a rank, one after another, as of a profiler that records in
    cycles.

    Raises ValueError where a rank has two of one step.
    """
    by_rank: dict[str, list[Recording]] = {}
    for recording in recordings:
        by_rank.setdefault(recording.rank, []).append(recording)
    ranks = []
    for rank, cycles in by_rank.items():
        cycles.sort(key=lambda cycle: int(cycle.step[0]))
        numbers = [number for cycle in cycles for number in np.unique(cycle.step)]
        if len(set(numbers)) < len(numbers):
            raise ValueError(
                f"there are two traces of rank {rank} with the same steps: give those "
                "of one recording"
            )
        parts = zip(*(cycle[1:] for cycle in cycles), strict=True)
        ranks.append(Recording(rank, *map(np.concatenate, parts)))
    return ranks


def unknown_chunk(path: str, chunk_name: str, counts: Mapping[str, int]) -> ValueError:
    """Nothing in a file begins a chunk by its name; `counts` are of names that may."""
    said = f"--chunk-name: nothing in {path} is named {chunk_name}"
    frequent = sorted(counts, key=lambda name: (-counts[name], name))[:_LISTED]
    if frequent:
        listed = ", ".join(f"{name} ({counts[name]})" for name in frequent)
        said += f". The most frequent are: {listed}"
    return ValueError(said)
