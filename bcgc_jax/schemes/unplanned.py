"""Schemes with nothing to plan: each is its own rule."""

import dataclasses
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from bcgc_jax.schemes.base import Resources, Scheme
from bcgc_jax.steps.rule import LogRule
from bcgc_jax.steps.steps import Outcome, Steps
from bcgc_jax.steps.storage import least_alone


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


@dataclasses.dataclass(frozen=True)
class HostLimit(Unplanned):
    """No exact scheme takes less that stores each sample on D of H hosts of one size.

    Data that only k hosts store can only be computed by these. It supposes that nobody
    knows which hosts will be slow when the data are placed.
    """

    max_subsets: int

    by_chunk = True

    @classmethod
    def rows(cls, resources: Resources) -> Iterator["HostLimit"]:
        """Of two subsets and of three, where that is less than one a host."""
        workers = Counter(resources.hosts)
        if len({*workers.values()}) == 1:
            for number in (2, 3):
                if number <= resources.most_subsets and number < len(workers):
                    yield cls(number)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{Limit.name}:{self.max_subsets}"

    def needs(self, choice: Sequence[float]) -> str:
        return f"each sample on {self.max_subsets} hosts: no exact scheme saves more"

    def stored_subsets(self, choice: Sequence[float], num_workers: int) -> int:
        return self.max_subsets

    def outcome(self, steps: Steps) -> Outcome:
        """max_k C(k, D) / C(H, D) of the work, by the k slowest hosts together."""
        hosts = np.array(steps.hosts)
        count = hosts.max() + 1
        speeds = np.stack(
            [(1 / steps.pace[:, hosts == host]).sum(axis=1) for host in range(count)],
            axis=1,
        )
        slowest = np.cumsum(np.sort(speeds, axis=1), axis=1)
        alone = least_alone(count, self.max_subsets) / count
        work = steps.lengths.sum(axis=(1, 2))
        return Outcome(work * np.max(alone / slowest, axis=1))
