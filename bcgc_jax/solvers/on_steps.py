"""Plans for a law on the steps of a log, with tasks done one step after the other."""

import dataclasses

import jax
import numpy as np

from bcgc_jax.measured.choice import smooth_or_atoms
from bcgc_jax.plans.plan import Plan, needs_of
from bcgc_jax.plans.simulation import steps_in_a_row
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution
from bcgc_jax.steps.rule import LogRule
from bcgc_jax.steps.steps import Outcome, Steps

# The unit of sizes: so many coordinates that whole numbers of them need no search.
_COORDINATES = 1_000_000


def problem_of_times(times: np.ndarray, forward: float) -> Problem:
    """The problem of workers that take these times for a subset, with both passes,
    `[S, N]`.

    A forward pass takes `forward` of a backward pass. All slowness is taken for that of
    workers, not of their data.
    """
    workers = times.shape[1]
    # So many samples that passes go over eight chunks.
    samples = 1e4 * workers
    cycles = 1e-4 / _COORDINATES / (1 + forward)
    return Problem(
        smooth_or_atoms(times, None, workers),
        workers,
        _COORDINATES,
        num_samples=samples,
        cycles=cycles,
        setup_cycles=forward * _COORDINATES * cycles or None,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class InARow(LogRule):
    """The steps of a plan one after the other, by workers that store so many subsets.

    All passes that it adds are counted, and a worker first ends the chunk that it has
    begun.
    """

    problem: Problem
    plan: Plan
    stored: float

    @classmethod
    def of(cls, problem: Problem, solution: Solution) -> "InARow":
        """By a solution.

        Raises ValueError for one without a plan, as of a function that gives runtimes.
        """
        plan = solution.plan
        needs = None
        if plan is not None:
            needs = needs_of(plan, solution.rounded, problem.num_workers)
        if plan is None or needs is None:
            raise ValueError(
                "only what says who does what can be replayed in a log: take a method "
                "with a plan"
            )
        return cls(problem, plan, float(np.asarray(needs.stored_subsets)))

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        times = steps.times()[slice(None) if which is None else which]
        with jax.enable_x64(True):
            fresh_and_chained = steps_in_a_row(
                self.problem, self.plan, np.zeros_like(times), times
            )
            assert fresh_and_chained is not None
            return Outcome(
                float(self.problem.scale) * fresh_and_chained[1], choice=(self.stored,)
            )
