"""The collectives and chunks that a profiler has recorded on one rank."""

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
# Maximum number of names in the message about an unknown name.
_LISTED = 5


class Recording(NamedTuple):
    """C collectives and M chunks of one rank, in seconds of its own clock.

    Attributes:
      rank: Name of the rank.
      step: Step number of each collective, `[C]`, in the order of time.
      end: End of each collective, `[C]`.
      exposed: Exposed seconds of each collective, `[C, 2]`, if gaps are waiting, and if
        gaps are computation; see `spans.exposed`.
      chunk_step: Step number of each chunk, `[M]`. Empty if chunks are not known.
      begin: Begin of each chunk, `[M]`, in the order of time.
      forward: Seconds of each chunk's forward pass, `[M]`. NaN if not known.
    """

    rank: str
    step: np.ndarray
    end: np.ndarray
    exposed: np.ndarray
    chunk_step: np.ndarray
    begin: np.ndarray
    forward: np.ndarray

    def numbered(self, shift: int) -> "Recording":
        """Return the recording with `shift` added to all step numbers."""
        return self._replace(step=self.step + shift, chunk_step=self.chunk_step + shift)

    def releases(self) -> dict[int, float]:
        """Return the end of each step's last collective, which all ranks share."""
        return dict(zip(self.step.tolist(), self.end.tolist(), strict=True))


def joined(recordings: Sequence[Recording]) -> list[Recording]:
    """Join successive recordings of each rank, from a profiler that records in cycles.

    Raises:
      ValueError: If two recordings of a rank contain the same step.
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
                f"two traces of rank {rank} contain the same steps. Use traces of one "
                "recording."
            )
        parts = zip(*(cycle[1:] for cycle in cycles), strict=True)
        ranks.append(Recording(rank, *map(np.concatenate, parts)))
    return ranks


def unknown_chunk(path: str, chunk_name: str, counts: Mapping[str, int]) -> ValueError:
    """Return the error that a file has no `chunk_name`, with the names in `counts`."""
    said = f"nothing in {path} is named {chunk_name}"
    frequent = sorted(counts, key=lambda name: (-counts[name], name))[:_LISTED]
    if frequent:
        listed = ", ".join(f"{name} ({counts[name]})" for name in frequent)
        said += f". The most frequent names are: {listed}."
    return ValueError(said)
