"""One step, an event at a time, by what hands out chunks where workers compute."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.steps.asking import Asking
from bcgc_jax.steps.ledger import Ledger, Name
from bcgc_jax.steps.paces import Paces, hand_out

# Where chunks are copied, times that differ by rounding alone are the same: who ends
# just then needs no look. Elsewhere nobody looks, and `lockstep` compares times as they
# are.
_ROUNDING = 1e-14


class StepEnd(NamedTuple):
    """How a step has ended.

    Attributes:
      time: when its last chunk has ended, seconds.
      busy: until when each worker computes, or does not begin, `[N]`.
    """

    time: float
    busy: np.ndarray


def driven(
    ledger: Ledger,
    paces: Paces,
    seconds: np.ndarray,
    starts: Sequence[float] | np.ndarray | None = None,
    pauses: np.ndarray | None = None,
    asking: Asking | None = None,
) -> StepEnd:
    """Play all workers, and the coordinator, of a step that nobody has begun.

    A worker asks at its start, and again when it has ended a chunk. The coordinator
    hears one question at a time, and knows then of all chunks that have ended by now.
    `lockstep` computes many such steps at once.

    Args:
      ledger: of the step.
      paces: of the step.
      seconds: of each chunk with each worker, `[N, M]`, in the order of
        `Ledger.holders`.
      starts: when each worker begins, `[N]`; None: all at 0.
      pauses: seconds by which the first chunk of each worker takes longer, its second,
        …, `[N, K]`.
      asking: what a question costs; nothing by default.

    Raises ValueError where nobody is left who could compute a chunk.

    >>> from bcgc_jax.steps.placement import Storage
    >>> ledger = Ledger(
    ...     0, Storage((((0, 1),) * 2, ((1, 0),) * 2)), [[4, 4], [4, 4]], "chunks"
    ... )
    >>> driven(ledger, Paces(2), np.array([[1.0] * 4, [3.0] * 4]))
    StepEnd(time=3.0, busy=array([3., 3.]))
    """
    asking = asking or Asking()
    workers = len(seconds)
    number = {chunk: k for k, chunk in enumerate(ledger.holders)}
    asks = np.zeros(workers) if starts is None else np.array(starts, float)
    to_come = [
        [] if pauses is None else list(pauses[worker]) for worker in range(workers)
    ]
    tickets: dict[int, Name] = {}
    resting: set[int] = set()
    now = hears = end = 0.0  # the coordinator hears no question before `hears`
    rounding = _ROUNDING if ledger.ends == "sums" else 0.0
    while not ledger.complete:
        now = _next_event(ledger, paces, resting, now, max(float(asks.min()), hears))
        by_now = (1 + rounding) * now
        for worker in np.flatnonzero(asks <= by_now).tolist():
            if worker in tickets:
                paces.ended(worker, now)
                if ledger.done(ledger.member(worker), tickets.pop(worker)) is not None:
                    end = max(end, float(asks[worker]))
        if ledger.complete:
            break
        while hears <= now and asks.min() <= by_now:
            heard = int(asks.argmin())
            asks[heard] = np.inf
            resting.add(heard)
            hears = now + asking.service
        if ledger.ends == "sums":
            for worker in paces.overdue(now, ledger.voided):
                ledger.late(worker)
        for worker, ticket, chunk in hand_out(ledger, paces, resting, now):
            tickets[worker] = ticket
            resting.remove(worker)
            pause = to_come[worker].pop(0) if to_come[worker] else 0.0
            asks[worker] = now + asking.alone + seconds[worker, number[chunk]] + pause
    busy = np.where(np.isfinite(asks), asks, end)
    return StepEnd(end, np.maximum(busy, end))


def _next_event(
    ledger: Ledger, paces: Paces, resting: set[int], now: float, asked: float
) -> float:
    """The next question, or before it a copy that is worth it, or an overdue worker."""
    look = math.inf
    if ledger.ends == "sums":
        copies = {
            worker: ledger.begun(worker) for worker in ledger.may_be_given(resting)
        }
        look = paces.next_look(now, ledger.voided, copies)
    following = asked
    if look < (1 - _ROUNDING) * asked:
        following = look
    if following == math.inf:
        raise ValueError(
            "nobody is left who stores the chunks that are missing, and answers"
        )
    return following
