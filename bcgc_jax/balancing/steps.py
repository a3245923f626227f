"""What many steps took, chunk by chunk, and how they ended by a rule."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bcgc_jax.balancing.storage import numbered


class Steps(NamedTuple):
    """S steps of N workers, each of which has a subset of the data in C chunks.

    Attributes:
      pace: factor by which a worker multiplies the length of a chunk in a step,
        `[S, N]`.
      lengths: seconds of chunk c of subset j at pace 1, both passes, `[S, N, C]`.
      pauses: seconds that a worker pauses in its first chunk, its second, …,
        `[S, N, K]`.
      stays: ln of the part of the pace that stays with a worker, `[S, N]`.
      costs: lengths as predicted before the step, from other steps, `[S, N, C]`; None
        where nothing is known but the sizes.
      forward: what a forward pass takes of a backward pass; 0 where that is not known.
      lock_step: whether chunk k of all workers is computed together, as with FSDP: the
        next one begins when the slowest has ended it.
      hosts: that of each worker, by number: who stores what goes by it; None where it
        is not known.

    >>> nothing, chunks = np.zeros((1, 2)), np.ones((1, 2, 4))
    >>> steps = Steps(np.array([[1.0, 3.0]]), chunks, 0 * chunks, stays=nothing)
    >>> steps.times().tolist(), steps.last().tolist()
    ([[4.0, 12.0]], [12.0])

    Of two chunks of 3 and 1 s, and of 1 and 3 s, each pair takes 3 s in lock-step:

    >>> chunks = np.array([[[3.0, 1.0], [1.0, 3.0]]])
    >>> together = Steps(
    ...     np.ones((1, 2)), chunks, 0 * chunks, nothing, chunks, lock_step=True
    ... )
    >>> (
    ...     together.last().tolist(),
    ...     together.dealt(np.array([[[0, 1], [3, 2]]])).last().tolist(),
    ... )
    ([6.0], [4.0])
    """

    pace: np.ndarray
    lengths: np.ndarray
    pauses: np.ndarray
    stays: np.ndarray
    costs: np.ndarray | None = None
    forward: float = 0.0
    lock_step: bool = False
    hosts: tuple[int, ...] | None = None

    @property
    def seconds(self) -> np.ndarray:
        """What each chunk took, `[S, N, C]`."""
        return self.pace[:, :, None] * self.lengths + self.pauses

    def times(self) -> np.ndarray:
        """What each worker took, `[S, N]`."""
        return self.pace * self.lengths.sum(axis=2) + self.pauses.sum(axis=2)

    def last(self) -> np.ndarray:
        """When the slowest has ended, `[S]`; in lock-step Σ_k max_n of k-th chunks."""
        if self.lock_step:
            return self.seconds.max(axis=1).sum(axis=1)
        return self.times().max(axis=1)

    def whole(self) -> "Steps":
        """The same steps of a single chunk, for what only needs sums: `times`."""
        lengths, pauses = (
            part.sum(axis=2, keepdims=True) for part in (self.lengths, self.pauses)
        )
        return self._replace(lengths=lengths, pauses=pauses, costs=None)

    def dealt(self, chunks: np.ndarray) -> "Steps":
        """The same steps; worker n's k-th chunk is number `chunks[s, n, k]` of N C."""

        def dealt(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values.reshape(len(values), -1), flat, 1).reshape(
                values.shape
            )

        flat = chunks.reshape(len(chunks), -1)
        costs = None
        if self.costs is not None:
            costs = dealt(self.costs)
        return self._replace(lengths=dealt(self.lengths), costs=costs)

    def take(self, which: np.ndarray) -> "Steps":
        """Some of the steps: `[S]` bool, or their numbers."""
        return self._mapped(lambda part: part[which])

    def seated(self, seats: np.ndarray) -> "Steps":
        """The same steps with the workers in another order."""
        seated = self._mapped(lambda part: part[:, seats])
        if self.hosts is None:
            return seated
        return seated._replace(hosts=numbered([self.hosts[seat] for seat in seats]))

    @classmethod
    def joined(cls, steps: Sequence["Steps"]) -> "Steps":
        """All steps, one after the other."""
        tables = [part._arrays() for part in steps]
        parts: Any = {
            name: np.concatenate([part[name] for part in tables]) for name in tables[0]
        }
        return steps[0]._replace(**parts)

    def _mapped(self, change: Callable[[np.ndarray], np.ndarray]) -> "Steps":
        parts: Any = {name: change(part) for name, part in self._arrays().items()}
        return self._replace(**parts)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            k: part
            for k, part in self._asdict().items()
            if isinstance(part, np.ndarray)
        }


class Outcome(NamedTuple):
    """How S steps ended.

    Attributes:
      seconds: of each step, `[S]`.
      used: the chunks that are in the gradient, bool, `[S, N, C]`, with 1 in place of
        what does not matter; None for all.
      choice: what was planned, in numbers: one for each plan.
      planning: what each step changes as one that is planned on, `[S]`, with mean 0:
        its seconds and this together vary as the mean does from log to log.
    """

    seconds: np.ndarray
    used: np.ndarray | None = None
    choice: tuple[float, ...] = ()
    planning: np.ndarray | float = 0.0

    @property
    def lost(self) -> float:
        """The mean share of a step's samples that are not in the gradient."""
        if self.used is None:
            return 0.0
        return float(np.mean(~self.used))

    def longer(self, steps: Steps) -> float | None:
        """The lost chunks' mean time over that of the others; None without any."""
        if self.used is None or self.used.all() or not self.used.any():
            return None
        used = np.broadcast_to(self.used, steps.lengths.shape)
        seconds = steps.seconds
        return float(seconds[~used].mean() / seconds[used].mean())

    def take(self, which: np.ndarray) -> "Outcome":
        """The outcomes of some of the steps, by their numbers."""
        used, planning = self.used, self.planning
        if used is not None:
            used = used[which]
        if isinstance(planning, np.ndarray):
            planning = planning[which]
        return self._replace(seconds=self.seconds[which], used=used, planning=planning)

    @classmethod
    def joined(
        cls, which: np.ndarray, outcome: "Outcome", elsewhere: "Outcome"
    ) -> "Outcome":
        """Outcomes of the steps `which`, `[S]` bool, and of all others."""
        seconds = _merged(which, outcome.seconds, elsewhere.seconds)
        used = None
        if outcome.used is not None:
            used = _merged(which, outcome.used, elsewhere.used)
        return cls(seconds, used, outcome.choice + elsewhere.choice)

    def split(self, count: int) -> list["Outcome"]:
        """Outcomes of so many equal runs of the steps."""
        return [
            self._replace(seconds=seconds) for seconds in np.split(self.seconds, count)
        ]


def _merged(
    which: np.ndarray, values: np.ndarray, elsewhere: np.ndarray | None
) -> np.ndarray:
    assert elsewhere is not None
    merged = np.empty((len(which), *values.shape[1:]), values.dtype)
    merged[which] = values
    merged[~which] = elsewhere
    return merged


class Rule:
    """Says when a step has ended, for workers that go by a plan.

    Those of `plans` answer for a law, by what workers have spent after each task; a
    `LogRule` for the steps of a log.

    Attributes:
      exact_gradient: whether what comes of it is the gradient of all data.
      bound_of: which plans a lower bound of such a plan is for: "levels", all
        partitions of the levels in question; "groups", all sizes of blocks of these
        groups; "storage", every exact scheme of workers that store as much; "" if there
        is none.
    """

    exact_gradient: bool = True
    bound_of: ClassVar[str] = ""


class LogRule(Rule, ABC):
    """Says when the steps of a log have ended."""

    @abstractmethod
    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        """How the steps end, or those of `which` alone, `[S]` bool.

        A rule may look at steps before these.
        """
