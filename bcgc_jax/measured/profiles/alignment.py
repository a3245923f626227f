"""Step numbers of ranks, put right by when they leave their collectives.

Numbers only name steps. Seconds between two releases are the same on all ranks,
whatever their clocks say, and no two steps take the same: so they tell which step is
which.
"""

from collections.abc import Sequence

import numpy as np

from bcgc_jax.measured.profiles.recording import Recording

# Numbers that are off by more are not searched for.
_MOST = 3
# Fewer seconds between releases do not tell.
_FEWEST = 6
# Another numbering must fit so many times better.
_CLEARLY = 3.0


def shift_of(first: Recording, second: Recording) -> int:
    """By how much numbers of the second must be raised; 0 where that is not clear."""
    fits = {shift: _apart(first, second, shift) for shift in range(-_MOST, _MOST + 1)}
    best = min(fits, key=fits.__getitem__)
    if fits[best] < fits[0] / _CLEARLY:
        return best
    return 0


def _apart(first: Recording, second: Recording, shift: int) -> float:
    """How much the seconds between releases differ, by their median."""
    ours, theirs = first.releases(), second.releases()
    differences = [
        abs(
            (ours[step] - ours[step - 1])
            - (theirs[step - shift] - theirs[step - shift - 1])
        )
        for step in ours
        if step - 1 in ours and {step - shift, step - shift - 1} <= theirs.keys()
    ]
    if len(differences) >= _FEWEST:
        return float(np.median(differences))
    return np.inf


def aligned(recordings: Sequence[Recording]) -> tuple[list[Recording], list[str]]:
    """The recordings, numbered as the first one, and in words which were wrong."""
    first = recordings[0]
    ranks, said = [first], []
    for recording in recordings[1:]:
        if shift := shift_of(first, recording):
            said.append(
                f"Steps of worker {recording.rank} are numbered {-shift:+d} against "
                f"those of worker {first.rank}: put right by when workers leave the "
                "collectives."
            )
            recording = recording.numbered(shift)
        ranks.append(recording)
    return ranks, said
