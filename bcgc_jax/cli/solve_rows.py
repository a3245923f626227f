"""The rows of `bcgc solve`: what is said of a solution."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax.cli.describe import num_workers, status_name
from bcgc_jax.cli.output import Row, finite, for_used
from bcgc_jax.plans.loads import partition_of_units
from bcgc_jax.plans.plan import Plan, Requirements
from bcgc_jax.plans.runtime import completion_probability
from bcgc_jax.plans.simulation import RuntimeEstimate, simulate_completion
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, whole_numbers
from bcgc_jax.solvers.baselines import alpha_of

# Draws for a completion probability: its standard error is 0.01 at most.
_DRAWS = 2**12


class Schedule(NamedTuple):
    """Blocks of a scheme without a code: sizes, and tasks or groups of workers."""

    sizes: list[int]
    tasks: list[list[int]] | None = None
    groups: Sequence[Any] | None = None

    def plain(self) -> Row:
        return {
            name: value for name, value in self._asdict().items() if value is not None
        }


class Solved(NamedTuple):
    """A method's solution in plain numbers, which are None where infinite or unknown.

    They are those of `columns.SOLUTION`. `saved` and the `chained` ones depend on other
    rows, or on which are shown; `deadline` is what was asked.
    """

    method: str
    solution: Solution
    status: str
    expected_runtime: float | None
    kind: str = "exact"
    seconds: float = 0.0
    runtime_error: float | None = None
    lower_bound: float | None = None
    relative_gap: float | None = None
    bound_of: str | None = None
    partition: list[int] | None = None
    partition_runtime: float | None = None
    schedule: Schedule | None = None
    stored_subsets: int | None = None
    sent: float | None = None
    round_trips: int | None = None
    exact_gradient: bool | None = None
    lost: float | None = None
    deadline: float | None = None
    completion_probability: float | None = None
    completion_error: float | None = None
    alpha: float | None = None
    threshold: float | None = None
    at_limit: float = 0.0
    levels: list[int] | None = None
    saved: float | None = None
    chained_runtime: float | None = None
    chained_error: float | None = None

    @property
    def step(self) -> float:
        """E τ, of the whole numbers where there are some."""
        return self.partition_runtime or self.expected_runtime or np.inf

    @property
    def runtime(self) -> float:
        """E τ, of schemes that lose samples for as many samples that are used."""
        return for_used(self.step, self.lost)

    @property
    def exact(self) -> bool:
        """Whether the gradient is that of all data, as far as it is known."""
        return self.exact_gradient is not False

    @property
    def shares_work(self) -> bool:
        return self.bound_of == "storage"


class SolveAnswer(NamedTuple):
    """What there is to say.

    `rows`: one for each method, best first; `limit`: of any scheme; `baseline`: the row
    of the fastest one, asked for or not; `interval`: of the best plan's runtime, where
    workers are the rows of a trace; `setup`: `largest_setup` of the fastest plan;
    `unit`: that times are printed in, and its name; `enough`: `enough_subsets`;
    `stays_slow`: whether workers of the trace do.
    """

    problem: Problem
    rows: list[Solved]
    limit: float
    deadline: float | None = None
    baseline: Solved | None = None
    interval: tuple[float, float] | None = None
    setup: float | None = None
    unit: tuple[float, str] = (1.0, "the cycle time's unit")
    enough: int | None = None
    stays_slow: bool = False

    @property
    def parts(self) -> str:
        if self.problem.unit_costs is None:
            return "coordinates"
        return "units"


def fastest(rows: Sequence[Solved]) -> Solved | None:
    finite_rows = (row for row in rows if np.isfinite(row.runtime))
    return min(finite_rows, key=lambda row: row.runtime, default=None)


def fastest_plan(rows: Sequence[Solved]) -> Solved | None:
    return fastest([row for row in rows if row.partition is not None])


def share_saved(row: Solved, uncoded: Solved | None) -> float | None:
    """Return the saved share of the uncoded time; None where either is unknown."""
    if (
        uncoded is None
        or not np.isfinite(row.runtime)
        or not np.isfinite(uncoded.runtime)
    ):
        return None
    return 1 - row.runtime / uncoded.runtime


def solved_of(
    method: str,
    problem: Problem,
    solution: Solution,
    seconds: float,
    deadline: float | None,
) -> Solved:
    """What is said of a solution of `problem`, which took the solver these seconds."""
    exists = int(solution.status) != Status.INFEASIBLE
    plan = solution.plan if exists else None
    rule = None if plan is None else plan.completion
    fields: dict[str, Any] = _plain_needs(solution.needs) if exists else {}
    if float(solution.lower_bound) > 0:  # 0 bounds any runtime, and says nothing
        fields["lower_bound"] = finite(solution.lower_bound)
        fields["relative_gap"] = finite(solution.relative_gap)
    judged: Any = (
        plan
        if rule is not None and (rule.groups or rule.bound_of == "storage")
        else None
    )
    if solution.rounded is not None and exists:
        fields["partition"] = np.asarray(solution.rounded)[
            : num_workers(problem)
        ].tolist()
        fields["partition_runtime"] = finite(solution.rounded_runtime)
        judged = partition_of_units(problem, solution.rounded)
    if deadline is not None and judged is not None:
        chance = _chance(problem, judged, deadline)
        fields["completion_probability"] = finite(chance.mean)
        fields["completion_error"] = finite(chance.standard_error)
    if solution.method == "tandon_partial":
        fields["alpha"] = finite(alpha_of(solution))
    if rule is not None:
        columns = rule.columns(problem.scale)
        fields |= {name: float(value) for name, value in columns.items()}
    if solution.levels is not None and problem.has_setup:
        fields["levels"] = np.flatnonzero(solution.levels).tolist()
    return Solved(
        method,
        solution,
        status_name(solution),
        finite(solution.expected_runtime),
        solution.kind,
        round(seconds, 4),
        runtime_error=finite(solution.runtime_error),
        bound_of=solution.bound_of or None,
        schedule=None if plan is None else _schedule(problem, plan),
        deadline=deadline,
        **fields,
    )


def _plain_needs(needs: Requirements | None) -> Row:
    if needs is None:
        return {}
    return {name: np.asarray(value).item() for name, value in needs._asdict().items()}


def _chance(problem: Problem, judged: Any, deadline: float) -> RuntimeEstimate:
    """P(τ ≤ deadline), by draws where there is no exact one."""
    time_limit = jnp.asarray(deadline)
    try:
        return RuntimeEstimate(
            completion_probability(problem, judged, time_limit), jnp.zeros(())
        )
    except ValueError:
        return simulate_completion(
            jax.random.key(0), problem, judged, time_limit, _DRAWS
        )


def _schedule(problem: Problem, plan: Plan) -> Schedule | None:
    listing = {}
    if plan.completion is not None:
        listing = plan.completion.listing(plan.block)
    if not listing:
        return None
    return Schedule(np.asarray(whole_numbers(problem, plan.sizes)).tolist(), **listing)
