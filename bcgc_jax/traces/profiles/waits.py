"""The wait inversion: seconds and waits of ranks by step, and whether to trust them."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.traces.intervals import percent
from bcgc_jax.traces.profiles.recording import Recording

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


# Own choices: what all ranks wait of a step, at most; how far the loss may be
# uncertain; how far apart, of a step, ranks may leave a collective.
_WAITED_BY_ALL = 0.05
_UNCERTAIN = 0.08
_APART = 0.25


class Waits(NamedTuple):
    """What ranks took in S steps, and what of it they waited.

    Attributes:
      ranks: W names.
      steps: `[S]`, int.
      begins, ends: of the steps, by each rank's clock: when the collectives of the step
        before and of this one have ended, `[S, W]`.
      wait: seconds in collectives beside no computation, `[S, W]`, with gaps as waits.
      least: the same with gaps as work.
      by_all: seconds that all ranks wait beyond the transfers, `[S]`: for each other,
        within.
      collectives: in a step.
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
        """From release to release, `[S, W]`."""
        return self.ends - self.begins


def waits_of(ranks: Sequence[Recording]) -> Waits:
    """Invert the waits of ranks whose steps are numbered alike.

    Own seconds are `seconds - wait`. Steps count that all ranks have, with as many
    collectives as most steps, after another one.

    Raises ValueError where there are no two such steps.
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
    # The shortest is the transfer; who waits more waits for others.
    for_others = exposed[..., 0] - exposed[..., 0].min(axis=1, keepdims=True)
    after = 1 + np.flatnonzero(np.diff(steps) == 1)
    if not len(after):
        raise ValueError("the ranks have no two neighbouring steps in common")
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
            "no step has as many collectives on all ranks: are these traces of one "
            "recording?"
        )
    usual = int(np.bincount(list(alike.values())).argmax())
    return np.array([step for step in common if alike.get(step) == usual]), usual


def check(waits: Waits) -> None:
    """Raise ValueError, with the number, for what no log of steps explains."""
    step = float(np.median(waits.seconds))
    leave = waits.ends - np.median(waits.ends - waits.ends[:, :1], axis=0)
    apart = float(np.median(np.ptp(leave, axis=1)))
    if apart > _APART * step:
        raise ValueError(
            f"ranks do not leave their collectives together: {1e3 * apart:.3g} ms "
            f"apart, of a step of {1e3 * step:.3g} ms. Are these traces of one "
            "recording?"
        )
    waited = waits.by_all / waits.seconds.mean(axis=1)
    by_all = max(float(waited.mean()), float(np.median(waited)))
    if by_all > _WAITED_BY_ALL:
        raise ValueError(
            "workers wait for each other within a step (FSDP, a pipeline, a barrier), "
            f"or for one that was not recorded: {percent(by_all)} % of a step is "
            f"waited by all of them, {percent(_WAITED_BY_ALL)} % may be. Seconds of "
            "steps do not show what that costs. Record each chunk "
            "(bcgc_jax.traces.recorder), and take --lock-step for FSDP"
        )
    losses = [_loss(waits.seconds - wait) for wait in (waits.wait, waits.least)]
    if abs(losses[0] - losses[1]) > _UNCERTAIN:
        raise ValueError(
            "computation is seen in a part of the workers' own time alone: gaps within "
            f"collectives are waits, and then {percent(losses[0])} % of the time is "
            f"lost, or work, and then {percent(losses[1])} %. Is the host late? Record "
            "own seconds (bcgc_jax.traces.recorder)"
        )


def _loss(seconds: np.ndarray) -> float:
    return float(1 - seconds.mean() / seconds.max(axis=1).mean())
