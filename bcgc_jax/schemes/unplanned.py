"""Schemes with nothing to plan: each is its own rule."""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from bcgc_jax.schemes.base import Scheme
from bcgc_jax.steps.rule import LogRule
from bcgc_jax.steps.steps import Outcome, Steps


class Unplanned(Scheme, LogRule):
    """A scheme that learns nothing: what a step takes depends on no other step."""

    learns = False

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        return self

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        return self.outcome(steps if which is None else steps.take(which))

    @abstractmethod
    def outcome(self, steps: Steps) -> Outcome:
        """How all steps end."""


@dataclasses.dataclass(frozen=True)
class Nothing(Unplanned):
    """All wait for the slowest worker."""

    name = "nothing"
    in_lock_step = of_lengths = True

    def outcome(self, steps: Steps) -> Outcome:
        return Outcome(steps.last())


@dataclasses.dataclass(frozen=True)
class Limit(Unplanned):
    """No exact scheme takes less, even if all store all, and nobody pauses."""

    name = "limit"
    by_chunk = in_lock_step = of_lengths = True

    def stored_subsets(self, choice: Sequence[float], num_workers: int) -> int:
        return num_workers

    def outcome(self, steps: Steps) -> Outcome:
        return Outcome(steps.lengths.sum(axis=(1, 2)) / np.sum(1 / steps.pace, axis=1))
