"""Schemes replayed in a log's steps: planned on one half, and judged in the other."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.balancing.scheme import Scheme
from bcgc_jax.balancing.steps import Outcome, Steps
from bcgc_jax.balancing.storage import side_by_side

# Plans of more steps hardly depend on a single one.
_MANY_STEPS = 500
# Schemes are judged in all steps, or in as many as there are in so much work of their
# replays: so many chunks, times workers and what a chunk takes whatever their number.
_MOST_WORK, _OF_CHUNK = 2**26, 32
# In fewer steps nobody would know well enough what a scheme saves.
_FEWEST_JUDGED = 500

# What is replayed next, how many schemes have been replayed, and of how many.
Report = Callable[[str, int, int], None]


class Replays(NamedTuple):
    """What became of schemes, by name.

    Attributes:
      schemes: as they have been replayed.
      draws: their outcomes in each of several draws of the chunks of a log.
      judged: the numbers of the steps in which they were judged, `[K]`.
    """

    schemes: dict[str, Scheme]
    draws: list[dict[str, Outcome]]
    judged: np.ndarray


def halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first half of so many steps, `[S]` bool, and the second."""
    first = np.arange(count) < count // 2
    return first, ~first


def judged_in(shape: tuple[int, ...]) -> np.ndarray:
    """Return the steps in which schemes are judged, `[K]`, of S steps of N workers and
    C chunks, `shape`: all, or K drawn at random where all would take minutes.

    K random steps in place of S make an error √(S/K) times as large. Steps at equal
    distances would hit all steps of a period, or none.

    >>> len(judged_in((2_000, 16, 8))), len(judged_in((62_500, 16, 8)))
    (2000, 10922)
    """
    count, workers, chunks = shape
    work = workers * chunks * (workers + _OF_CHUNK)
    num_judged = max(_MOST_WORK // work, _FEWEST_JUDGED)
    if count <= num_judged:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, num_judged, replace=False))


def judged(scheme: Scheme, steps: Steps) -> Outcome:
    """How steps end by a plan that has not seen them: that of the other half.

    `choice` has what was planned on the second half, and on the first.
    """
    first, second = halves(len(steps.pace))
    if not scheme.learns:
        return scheme.plan_on(steps, first | second).replay(steps)
    in_first = scheme.plan_on(steps, second).replay(steps, first)
    in_second = scheme.plan_on(steps, first).replay(steps, second)
    outcome = Outcome.joined(first, in_first, in_second)
    return outcome._replace(planning=_planning(scheme, steps))


def _planning(scheme: Scheme, steps: Steps) -> np.ndarray:
    """What each step changes in the mean step by the plan of the other half, times S,
    `[S]`.

    S (m-1)/m (mean of θ_{-t} - θ_{-t}), θ_{-t} the mean step without step t in a plan
    of m steps (the jackknife).
    """
    num_steps = len(steps.pace)
    planning = np.zeros(num_steps)
    if num_steps > _MANY_STEPS:
        return planning
    for planned in halves(num_steps):
        count = int(planned.sum())
        rules = scheme.without_each(steps, planned) if count > 1 else ()
        if not rules:
            continue
        other_steps = steps.take(~planned)
        means = np.array(
            [rule.replay(other_steps).seconds.sum() / num_steps for rule in rules]
        )
        planning[planned] = num_steps * (count - 1) / count * (means.mean() - means)
    return planning


def replayed(
    schemes: Iterable[Scheme],
    best: Steps,
    draws: Sequence[Steps],
    *,
    chosen: bool = False,
    report: Callable[[str], None] = lambda name: None,
) -> Replays:
    """Replay all schemes, for each of several draws of the chunks of a log.

    All plan on all steps of their half. A log that is very long is judged in some of
    its steps (`judged_in`).

    Args:
      schemes: what is replayed.
      best: the steps for what needs the seconds of workers, and who stays slow, alone.
      draws: others of the same seconds, for all else.
      chosen: whether the schemes are those of another replay, with nothing in their
        place.
      report: is told the name of each scheme before it is replayed.
    """
    where = judged_in(best.lengths.shape)
    seats = seats_of(draws[0], len(draws))
    all_draws = Steps.joined(
        [draw.take(where).seated(seat) for draw, seat in zip(draws, seats, strict=True)]
    )
    done: dict[str, Scheme] = {}
    outcomes: list[list[Outcome]] = []
    for scheme in schemes:
        report(scheme.name)
        done[scheme.name] = scheme
        if not scheme.by_chunk:
            outcomes.append([judged(scheme, best).take(where)] * len(draws))
        elif scheme.learns:
            outcomes.append([judged(scheme, draw).take(where) for draw in draws])
        else:
            # A step depends on no other: all draws are replayed at once.
            outcome = judged(scheme, all_draws)
            if not chosen and scheme.instead is not None:
                alternative = judged(scheme.instead, all_draws)
                if _takes_less(alternative, outcome, len(draws)):
                    done[scheme.name] = scheme.instead
                    outcome = alternative
            outcomes.append(outcome.split(len(draws)))
    by_draw = [
        dict(zip(done, drawn, strict=True)) for drawn in zip(*outcomes, strict=True)
    ]
    return Replays(done, by_draw, where)


def _takes_less(alternative: Outcome, outcome: Outcome, draws: int) -> bool:
    """Whether the alternative takes less time in both halves of the steps."""
    less = (outcome.seconds - alternative.seconds).reshape(draws, -1).mean(axis=0)
    return all(less[half].mean() > 0 for half in halves(len(less)))


def seats_of(steps: Steps, count: int) -> list[np.ndarray]:
    """Number workers anew for each draw: who shares data with whom is not known
    beforehand.

    The numbers do not depend on those in the log. Hosts that are known have the same
    places in each draw.
    """
    by_speed = np.argsort(np.log(steps.times()).mean(axis=0), kind="stable")
    rng = np.random.default_rng(0)
    seats = [by_speed[rng.permutation(len(by_speed))] for _ in range(count)]
    if steps.hosts is None:
        return seats
    return [np.array(side_by_side(seat.tolist(), steps.hosts)) for seat in seats]
