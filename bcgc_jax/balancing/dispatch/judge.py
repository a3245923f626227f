"""Says whether the next step is shared, by replays of each step in the other mode.

No trial by the clock: a step of either mode tells what the other would have taken. The
replay is that of `bcgc advise`, with the costs that the run has shown.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.balancing.asking import MEASURED, Asking
from bcgc_jax.balancing.chunk_lengths import lengths_of_pieces
from bcgc_jax.balancing.estimates import Estimate, Reader
from bcgc_jax.balancing.lockstep import Chunks, handed_out
from bcgc_jax.balancing.mode import Mode
from bcgc_jax.balancing.placement import Placement, chunk_tables

# The share of an own step that perfect sharing must save for it to be replayed.
_WORTH = 0.01
# Own steps that are replayed together: the first ones, later ones, and where nothing is
# to be saved.
_AT_FIRST, _LATER, _AT_MOST = 2, 4, 16
# Steps that have been observed when later ones begin.
_YOUNG = 8
# Shared steps and questions whose costs are remembered.
_SHARED, _QUESTIONS = 16, 256


class DoneStep(NamedTuple):
    """A complete step of N workers, of C own chunks or C' pieces a subset, in the order
    of subsets.

    Attributes:
      is_shared: its mode.
      who: the worker of each chunk, `[M]`.
      seconds: that each took, `[M]`.
      starts: when each worker has begun, seconds after the first one, `[N]`.
      took: seconds from the first begin to the last end; of an own step they follow
        from the rest.
      questions: seconds of those that were asked.
      ticks: lengths that were known before, of all pieces, `[N C']`; None where none
        were.
    """

    is_shared: bool
    who: np.ndarray
    seconds: np.ndarray
    starts: np.ndarray
    took: float = 0.0
    questions: Sequence[float] = ()
    ticks: np.ndarray | None = None

    @property
    def busy(self) -> np.ndarray:
        """What each worker has computed, `[N]`."""
        return np.bincount(self.who, self.seconds, len(self.starts))


def beside(work: Callable[[], None]) -> None:
    """Work in another thread: a replay takes milliseconds, workers ask meanwhile."""
    threading.Thread(target=work, name="replays steps", daemon=True).start()


class Judge:
    """Observes steps, and says in `mode` whether to share.

    Args:
      place: who stores what.
      asking: what a question costs, before any was asked.
      run: runs what is passed to it, by default beside the caller.

    Attributes:
      mode: as the steps that have been observed decide.

    >>> judge = Judge(Placement(2, 2, chunks=4), run=lambda work: work())
    >>> who, slow = np.repeat([0, 1], 4), np.repeat([0.1, 0.3], 4)
    >>> for _ in range(2):
    ...     judge.add(DoneStep(False, who, slow, starts=np.zeros(2)))
    >>> judge.mode.is_shared, round(judge.mode.share, 2)
    (True, 0.49)
    """

    def __init__(
        self,
        place: Placement,
        asking: Asking = MEASURED,
        run: Callable[[Callable[[], None]], None] = beside,
    ) -> None:
        self.mode = Mode()
        self._asking = asking
        self._run = run
        self._sizes = place.sizes
        self._tables = chunk_tables(place.storage, place.sizes)
        self._reader = Reader(np.array(place.shares), place.num_workers)
        self._waiting: list[DoneStep] = []
        self._is_busy = False
        # What sharing has cost: seconds of questions; seconds of a step beside its
        # replay; steps that are not replayed yet.
        self._questions: deque[float] = deque(maxlen=_QUESTIONS)
        self._overheads: deque[float] = deque(maxlen=_SHARED)
        self._unreplayed: deque[tuple[DoneStep, Estimate]] = deque(maxlen=_SHARED)
        # What it costs where nothing can be saved, as a share of an own step.
        self._loss: float | None = None

    def add(self, step: DoneStep) -> None:
        """Observe a step, at once or with later ones."""
        self._waiting.append(step)
        if self._is_due() and not self._is_busy:
            steps = self._waiting
            self._waiting = []
            self._is_busy = True
            self._run(lambda: self._observe_beside(steps))

    def observe(self, steps: Sequence[DoneStep]) -> None:
        estimates = [self._estimate(step) for step in steps]
        own_seconds = [
            self._own_seconds(step, estimate)
            for step, estimate in zip(steps, estimates, strict=True)
        ]
        shared_seconds = self._shared_seconds(steps, estimates, own_seconds)
        for seconds_alone, seconds in zip(own_seconds, shared_seconds, strict=True):
            self.mode = self.mode.after(seconds_alone, seconds)

    @property
    def asking(self) -> Asking:
        """What a question costs, by the last ones."""
        if not self._questions:
            return self._asking
        alone = float(np.median(self._questions))
        return Asking(max(alone - MEASURED.service, 0.0), MEASURED.service)

    def _observe_beside(self, steps: Sequence[DoneStep]) -> None:
        try:
            self.observe(steps)
        finally:
            self._is_busy = False

    def _is_due(self) -> bool:
        """Whether so many steps wait that they are observed now."""
        steps = self._waiting
        if any(step.is_shared for step in steps):
            return True
        count = _LATER
        if len(self.mode.saved) < _YOUNG:
            count = _AT_FIRST
        enough = len(steps) >= count and any(map(self._is_worth_a_replay, steps))
        return enough or len(steps) >= _AT_MOST

    # What a step would have taken.

    def _estimate(self, step: DoneStep) -> Estimate:
        """Paces, lengths and pauses; what sharing costs is noted."""
        self._questions.extend(step.questions)
        estimate = self._reader.read(step.is_shared, step.who, step.seconds)
        if step.is_shared and not estimate.pauses.any():
            self._unreplayed.append((step, estimate))
        return estimate

    def _own_seconds(self, step: DoneStep, estimate: Estimate) -> float:
        """Seconds without sharing: the slowest worker, and the message at its end."""
        busy = (
            estimate.paces * self._reader.whole(estimate).sum(axis=1) + estimate.pauses
        )
        ends = step.starts + busy
        return float(ends.max()) + self.asking.alone

    def _shared_seconds(
        self,
        steps: Sequence[DoneStep],
        estimates: Sequence[Estimate],
        own_seconds: Sequence[float],
    ) -> list[float]:
        """Seconds with sharing: measured, replayed, or as before if none are saved."""
        worth = [not step.is_shared and self._is_worth_a_replay(step) for step in steps]
        seconds = [step.took for step in steps]
        alone = [k for k, step in enumerate(steps) if not step.is_shared]
        if alone and (any(worth) or self._loss is None):
            self._learn_overheads()
            ends = self._replay([(steps[k], estimates[k]) for k in alone])
            losses = [
                end / own_seconds[k] - 1
                for k, end in zip(alone, ends, strict=True)
                if not worth[k]
            ]
            if losses:
                self._loss = float(np.mean(losses))
        else:
            loss = self._loss or 0.0
            ends = np.array([own_seconds[k] * (1 + loss) for k in alone])
        overhead = 0.0
        if self._overheads:
            overhead = float(np.median(self._overheads))
        for k, end in zip(alone, ends, strict=True):
            seconds[k] = float(end) + overhead
        return seconds

    def _replay(self, steps: Sequence[tuple[DoneStep, Estimate]]) -> np.ndarray:
        """When steps end in which chunks are handed out, `[S]`."""
        lengths = []
        for step, estimate in steps:
            of_chunks = estimate.lengths.reshape(len(step.starts), -1)
            if not step.is_shared:
                fixed = self._reader.fixed * of_chunks.mean()
                of_chunks = lengths_of_pieces(of_chunks, self._sizes, fixed)
            lengths.append(of_chunks.ravel())
        ticks = [step.ticks for step, _ in steps if step.ticks is not None]
        stacked_ticks = None
        if len(ticks) == len(steps):
            stacked_ticks = np.stack(ticks)
        paces = np.stack([estimate.paces for _, estimate in steps])
        starts = np.stack([step.starts for step, _ in steps])
        no_pauses = np.zeros((*paces.shape, 0))
        chunks = Chunks(paces, np.stack(lengths), no_pauses, stacked_ticks, starts)
        return handed_out(self._tables, chunks, self.asking)

    # What sharing costs.

    def _learn_overheads(self) -> None:
        """What shared steps took beside their replays, which are made only now.

        Steps that the mode has forgotten say nothing of today's cost.
        """
        if not self._unreplayed:
            return
        remembered = max(len(self.mode.saved), 1)
        steps = list(self._unreplayed)[-remembered:]
        self._unreplayed.clear()
        took = np.array([step.took for step, _ in steps])
        overheads = [*self._overheads, *(took - self._replay(steps)).tolist()]
        self._overheads = deque(overheads[-remembered:], maxlen=_SHARED)

    def _is_worth_a_replay(self, step: DoneStep) -> bool:
        """Whether perfect sharing would save enough of an own step.

        Each of N C' pieces has a request, which takes r seconds. Even if the slowest
        worker made all of them, the step would end at a time t with
        Σ_w (t - start_w) / busy_w = N (1 + C' r / max busy).
        """
        speed = 1 / step.busy
        requests = len(self._sizes) * self.asking.alone * speed.min()
        least = (len(speed) * (1 + requests) + step.starts @ speed) / speed.sum()
        return bool(np.max(step.starts + step.busy) * (1 - _WORTH) > least)
