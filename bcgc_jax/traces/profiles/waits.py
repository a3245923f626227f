"""Determine step times and blocked times from recordings, and check their validity."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.traces.intervals import percent
from bcgc_jax.traces.profiles.recording import Recording

# Largest difference between the step numbers of two ranks that is corrected.
_MOST = 3
# Minimum number of step times that two ranks must share to compare their numbers.
_FEWEST = 6
# Factor by which other step numbers must fit better to be used.
_CLEARLY = 3.0


def shift_of(first: Recording, second: Recording) -> int:
    """Return the number to add to the second rank's step numbers; 0 if not clear."""
    fits = {shift: _apart(first, second, shift) for shift in range(-_MOST, _MOST + 1)}
    best = min(fits, key=fits.__getitem__)
    if fits[best] < fits[0] / _CLEARLY:
        return best
    return 0


def _apart(first: Recording, second: Recording, shift: int) -> float:
    """Return the median difference between the step times of two ranks."""
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
    """Number all recordings as the first one. Return them and remarks on changes."""
    first = recordings[0]
    ranks, said = [first], []
    for recording in recordings[1:]:
        if shift := shift_of(first, recording):
            said.append(
                f"The step numbers of worker {recording.rank} differ by {-shift:+d} "
                f"from the numbers of worker {first.rank}. They were corrected by the "
                "times at which workers leave the collectives."
            )
            recording = recording.numbered(shift)
        ranks.append(recording)
    return ranks, said


# Limits of valid traces, chosen by the authors. Maximum part of a step in which all
# ranks are blocked.
_WAITED_BY_ALL = 0.05
# Maximum difference between the two values of the lost time, as fractions.
_UNCERTAIN = 0.08
# Maximum time between the ranks' ends of a collective, as a fraction of a step.
_APART = 0.25


class Waits(NamedTuple):
    """Step times of W ranks in S steps, and their exposed seconds in collectives.

    Attributes:
      ranks: Names of the W ranks.
      steps: Step numbers, `[S]`.
      begins: Begins of the steps by each rank's clock, `[S, W]`. A step begins when the
        collectives of the previous step have ended.
      ends: Ends of the steps' collectives by each rank's clock, `[S, W]`.
      wait: Exposed seconds, `[S, W]`, if gaps are waiting.
      least: Exposed seconds, `[S, W]`, if gaps are computation.
      by_all: Seconds beyond the transfers that every rank waits, `[S]`. They are
        positive if ranks wait for each other within a step.
      collectives: Number of collectives in a step.
    """

    ranks: list[str]
    steps: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    wait: np.ndarray
    least: np.ndarray
    by_all: np.ndarray
    collectives: int

    @property
    def seconds(self) -> np.ndarray:
        """Step times, from the previous step's end to this step's end, `[S, W]`."""
        return self.ends - self.begins


def waits_of(ranks: Sequence[Recording]) -> Waits:
    """Determine the step times and waits of ranks that have the same step numbers.

    The compute time is `seconds - wait`. A step is complete if all ranks have recorded
    the usual number of collectives. A complete step is used if the previous step is
    complete, too.

    Raises:
      ValueError: If no two successive steps are complete.
    """
    steps, collectives = _common_steps(ranks)
    release = np.empty((len(steps), len(ranks)))
    exposed = np.empty((len(steps), len(ranks), collectives, 2))
    for place, rank in enumerate(ranks):
        common = np.flatnonzero(np.isin(rank.step, steps))
        rows = common[np.argsort(rank.step[common], kind="stable")].reshape(
            -1, collectives
        )
        release[:, place] = rank.end[rows].max(axis=1)
        exposed[:, place] = rank.exposed[rows]
    # The shortest exposed time is the transfer. Ranks wait for others beyond it.
    for_others = exposed[..., 0] - exposed[..., 0].min(axis=1, keepdims=True)
    after = 1 + np.flatnonzero(np.diff(steps) == 1)
    if not len(after):
        raise ValueError(
            "the traces of all ranks have no two successive steps in common. Record "
            "the same steps on all ranks."
        )
    return Waits(
        ranks=[rank.rank for rank in ranks],
        steps=steps[after],
        begins=release[after - 1],
        ends=release[after],
        wait=exposed[after, ..., 0].sum(axis=2),
        least=exposed[after, ..., 1].sum(axis=2),
        by_all=for_others.sum(axis=2).min(axis=1)[after],
        collectives=collectives,
    )


def _common_steps(ranks: Sequence[Recording]) -> tuple[np.ndarray, int]:
    counts = [Counter(rank.step.tolist()) for rank in ranks]
    common = sorted(set.intersection(*map(set, counts)))
    alike = {
        step: counts[0][step]
        for step in common
        if len({rank[step] for rank in counts}) == 1
    }
    if not alike:
        raise ValueError(
            "no step has the same number of collectives on all ranks. Use traces of "
            "one recording."
        )
    usual = int(np.bincount(list(alike.values())).argmax())
    return np.array([step for step in common if alike.get(step) == usual]), usual


def check(waits: Waits) -> None:
    """Check that the waits determine the compute times of the ranks.

    Raises:
      ValueError: If ranks do not leave collectives together, if all ranks wait within a
        step, or if the lost time is uncertain because computation is not recorded.
    """
    step = float(np.median(waits.seconds))
    leave = waits.ends - np.median(waits.ends - waits.ends[:, :1], axis=0)
    apart = float(np.median(np.ptp(leave, axis=1)))
    if apart > _APART * step:
        raise ValueError(
            f"ranks leave a collective {1e3 * apart:.3g} ms apart, although a step "
            f"takes only {1e3 * step:.3g} ms. Use traces of one recording."
        )
    waited = waits.by_all / waits.seconds.mean(axis=1)
    by_all = max(float(waited.mean()), float(np.median(waited)))
    if by_all > _WAITED_BY_ALL:
        raise ValueError(
            f"all ranks wait during {percent(by_all)} % of a step, but the limit is "
            f"{percent(_WAITED_BY_ALL)} %. They wait for each other within a step "
            "(FSDP, a pipeline, a barrier), or for a rank without a trace. Times of "
            "steps do not show this cost. Record each chunk with "
            "`bcgc_jax.traces.recorder`, and for FSDP use --lock-step."
        )
    losses = [_loss(waits.seconds - wait) for wait in (waits.wait, waits.least)]
    if abs(losses[0] - losses[1]) > _UNCERTAIN:
        raise ValueError(
            "the traces show too little of the computation. The lost time is "
            f"{percent(losses[0])} % if gaps within collectives are waiting, and "
            f"{percent(losses[1])} % if they are computation. The host may launch "
            "kernels too late. Record compute times with `bcgc_jax.traces.recorder`."
        )


def _loss(seconds: np.ndarray) -> float:
    return float(1 - seconds.mean() / seconds.max(axis=1).mean())
