"""Who plans for a training: what all of them have in common, and plans for a problem that is known."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import replace
from bcgc_jax.adaptive import Decision
from bcgc_jax.cluster.collection import ClusterGradient
from bcgc_jax.cluster.master import Cluster
from bcgc_jax.cluster.sources import Source
from bcgc_jax.coding.gradients import Loss, PyTree, split_unevenly
from bcgc_jax.coding.training import TrainingScheme, training_scheme
from bcgc_jax.distributions import Distribution
from bcgc_jax.plans.plan import Plan
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.methods import Method, method_of
from bcgc_jax.solvers.solve import solve


class Job(NamedTuple):
    """What is planned for: a training of `num_steps` iterations, the `first` of which are done already.

    `key` is that of the plans, `seed` that of the mini-batches.
    """

    cluster: Cluster
    loss: Loss
    params: PyTree
    data: PyTree | Source
    batch_size: int | None
    key: Array
    seed: int
    first: int
    num_steps: int


@dataclasses.dataclass(frozen=True)
class Told:
    """A problem that is known, and how to plan for it: again for the workers left, where some are lost.

    Attributes:
      problem: as many workers as the cluster has, coordinates as the parameters have (`unit_costs` for other
        units), samples as an iteration has.
      method: of `solve`; or a `Plan`, a schedule, done as it is, by the workers left as far as there are
        subsets.
      plan_options: `units`, `order`, `construction` and `mean` of `coding_plan`; of a schedule those of
        `schedule_plan`.
    """

    problem: Problem
    method: str | Method | Plan = "optimal"
    plan_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_workers(self) -> int | None:
        return int(np.asarray(self.problem.num_workers))

    @property
    def start_up(self) -> Distribution | ArrayLike | None:
        return self.problem.start_up

    @property
    def name(self) -> str:
        return str(self.method) if isinstance(self.method, Plan) else method_of(self.method).name

    def begin(self, job: Job) -> "Plans":
        return Plans(self, job)


class Plans:
    """Gives the workers of a training their work; other sources hear what that took, and plan anew."""

    decisions: tuple[Decision, ...] = ()

    def __init__(self, source: Any, job: Job) -> None:
        self.source, self.job = source, job

    def give_work(self, members: Sequence[int]) -> TrainingScheme:
        """To so many workers, as the problem counts them."""
        job = self.job
        scheme = scheme_for(job.key, self.source, members, job.params, job.batch_size)
        parts = job.data if callable(job.data) else split_unevenly(job.data, len(members))
        given = job.loss, scheme.plan, job.params, parts
        job.cluster.assign(*given, batch_size=job.batch_size, seed=job.seed)
        return scheme

    def is_ready(self) -> bool:
        """Whether there is another plan, and the workers are ready for it."""
        return False

    def hear(self, found: ClusterGradient, start_ups: np.ndarray | float) -> None:
        """What an iteration took, of all and of each; `start_ups`, `[N]`, are slowness on purpose."""

    def close(self) -> None:
        """The training has ended."""


def scheme_for(
    key: Array, told: Told, members: Sequence[int], params: PyTree, batch_size: int | None
) -> TrainingScheme:
    """What is planned for those workers of a problem that are left."""
    problem, method, options = told.problem, told.method, told.plan_options
    workers, left = int(np.asarray(problem.num_workers)), len(members)
    if left < workers:
        law = problem.cycle_time.of_workers(members)
        samples = problem.num_samples * (1 if batch_size is None else left / workers)
        # The program that solved it for all workers then solves it for those left, unless each has a law.
        most = problem.max_workers if law.width() is None else left
        problem = replace(problem, cycle_time=law, num_workers=left, max_workers=most, num_samples=samples)
    if isinstance(method, Plan):
        return training_scheme(key, problem, method, params, **options)
    solve_key, code_key = jax.random.split(jax.random.fold_in(key, left))
    try:
        return training_scheme(code_key, problem, solve(problem, method, key=solve_key), params, **options)
    except ValueError as error:
        if left == workers:
            raise
        warnings.warn(f'"{told.name}" is no scheme for the workers left, "optimal" is: {error}', stacklevel=2)
        return training_scheme(code_key, problem, solve(problem, key=solve_key), params, **options)
