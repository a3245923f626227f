"""Codes as schemes of `advise`: planned on some steps of a log, and replayed in others."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from bcgc_jax.measured.choice import smooth_or_atoms
from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.simulation import steps_in_a_row
from bcgc_jax.problem import Problem
from bcgc_jax.schemes.base import Scheme
from bcgc_jax.solvers.baselines import Backup
from bcgc_jax.solvers.deadline import Deadline
from bcgc_jax.solvers.drop import Drop
from bcgc_jax.solvers.limit import Limit
from bcgc_jax.solvers.methods import method_of
from bcgc_jax.solvers.placement import place_workers
from bcgc_jax.solvers.sharing import Sharing
from bcgc_jax.solvers.solve import solve
from bcgc_jax.steps.rule import Rule
from bcgc_jax.steps.steps import Outcome, Steps

# So many that whole numbers of them need no search.
_COORDINATES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Coded(Scheme):
    """An exact code, planned for the distribution of all times of the planned steps.

    All passes that it adds are counted, and a worker first ends the chunk that it has begun. All
    slowness is taken for that of workers, not of their data.

    Args:
      method: the name of a method; ValueError for one that is not planned on measured steps.
      forward: what a forward pass takes of a backward pass.

    >>> times = np.random.default_rng(0).exponential(1.0, (40, 4)) + 0.1
    >>> steps = Steps(times, np.ones((40, 4, 1)), np.zeros((40, 4, 0)), np.zeros((40, 4)))
    >>> first = np.arange(40) < 20
    >>> replayed = Coded("cyclic:2").plan_on(steps, first).replay(steps, ~first)
    >>> bool(replayed.seconds.mean() < steps.last()[~first].mean()), replayed.choice
    (True, (2.0,))
    """

    method: str
    forward: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(method_of(self.method), Sharing | Limit | Backup | Drop | Deadline):
            raise ValueError(
                f'"{self.method}" is not planned on measured steps: take nested, nested:2 or '
                "optimal"
            )

    @property
    def name(self) -> str:
        return self.method

    def needs(self, choice: Sequence[float]) -> str:
        return "workers that are slow, not their data"

    def stored(self, choice: Sequence[float], num_workers: int) -> int:
        return int(max(choice))

    def plan_on(self, steps: Steps, which: np.ndarray) -> Rule:
        times = steps.times()[which]
        with jax.enable_x64(True):
            return self._planned(times)

    def _planned(self, times: np.ndarray) -> Rule:
        """The plan for what workers take for a subset, with both passes, `[S, N]`."""
        workers = times.shape[1]
        # So many samples that passes go over eight chunks.
        samples = 1e4 * workers
        cycles = 1e-4 / _COORDINATES / (1 + self.forward)
        problem = Problem(
            smooth_or_atoms(times, None, workers),
            workers,
            _COORDINATES,
            num_samples=samples,
            cycles=cycles,
            setup_cycles=self.forward * _COORDINATES * cycles or None,
        )
        solution = solve(problem, self.method, key=jax.random.key(0))
        plan = solution.plan
        needs = solution.needs
        assert plan is not None
        assert needs is not None
        if plan.completion is not None and plan.completion.groups:
            plan = place_workers(problem, plan, times)
        return _InARow(problem, plan, float(np.asarray(needs.stored_subsets)))


@dataclasses.dataclass(frozen=True, eq=False)
class _InARow(Rule):
    """The steps of a plan one after the other, by workers that store so many subsets."""

    problem: Problem
    plan: Plan
    stored: float

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        times = steps.times()[slice(None) if which is None else which]
        with jax.enable_x64(True):
            found = steps_in_a_row(self.problem, self.plan, np.zeros_like(times), times)
            assert found is not None
            return Outcome(float(self.problem.scale) * found[1], choice=(self.stored,))
