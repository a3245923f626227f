"""What `bcgc fit` finds: fits, a plan for each distribution, and remarks on a log."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax.cli import traces
from bcgc_jax.cli.commands import FitOptions
from bcgc_jax.cli.compilation import padded
from bcgc_jax.cli.describe import status_name
from bcgc_jax.cli.output import finite
from bcgc_jax.cli.progress import Progress
from bcgc_jax.cli.solve_table import OVERFLOW
from bcgc_jax.diagnosis.description import NOTHING, Description, describe
from bcgc_jax.diagnosis.slowness import slowness_in
from bcgc_jax.distributions import Distribution
from bcgc_jax.plans.plan import partition_plan
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution, assess
from bcgc_jax.solvers.solve import solve
from bcgc_jax.traces.choice import distribution_of
from bcgc_jax.traces.fits import FAMILIES, Fit, fit_distributions
from bcgc_jax.traces.trace import Trace
from bcgc_jax.traces.whole_steps import fewer_chunks_in_words, whole_steps

# What is planned for, beside the best fit.
MEASURED = "measured times"
HEAVY = "smooth, Pareto tail"
UNCODED = "uncoded"


class FitPlan(NamedTuple):
    """The best plan for a distribution, in plain numbers: those of `columns.PLANS`.

    `runtime_under`: of its whole numbers, by distribution; `replayed_`: in whole steps
    of the trace, where they are of as many workers.
    """

    distribution: str
    partition: list[int]
    runtime_under: dict[str, float | None]
    expected_runtime: float | None = None
    relative_gap: float | None = None
    status: str = "converged"
    replayed_runtime: float | None = None
    replayed_error: float | None = None


def laws_of(
    trace: Trace,
    tail_index: float,
    fits: list[Fit],
    workers: int,
) -> dict[str, Distribution]:
    """Return the distributions to plan for, by name; the best is first.

    They are the best fit, the measured times, and these with a Pareto tail if it is
    heavy.
    """
    laws = {
        fits[0].name: fits[0].distribution,
        MEASURED: distribution_of(trace.seconds, workers, trace.censored),
    }
    if tail_index > 0:
        laws[HEAVY] = distribution_of(
            trace.seconds, workers, trace.censored, kind="pareto-tail"
        )
    # No plan has a finite runtime under a distribution without a mean.
    return {name: law for name, law in laws.items() if np.isfinite(float(law.mean()))}


def problems_of(
    question: FitOptions,
    trace: Trace,
    laws: dict[str, Distribution],
    workers: int,
) -> dict[str, Problem]:
    """Return the problem under each distribution; ValueError where one is too large."""
    cycles = question.cycles or 1.0
    sizes: dict[str, Any] = {
        "num_workers": workers,
        "num_coordinates": question.coordinates,
    }
    sizes |= {"num_samples": question.samples, "cycles": cycles}
    sizes |= question.passes(
        question.coordinates, cycles, traces.measured_forward(trace)
    )
    problems = {name: padded(Problem(law, **sizes)) for name, law in laws.items()}
    for problem in problems.values():
        traces.check_size(problem, "fewer times")
    return problems


def plan_of(
    name: str,
    solution: Solution | None,
    problems: dict[str, Problem],
    steps: Trace | None,
    workers: int,
) -> FitPlan:
    """Describe a plan: the optimum under a distribution, or uncoded without a
    `solution`.

    It has the runtime under each distribution, and the mean in whole `steps`.
    """
    first_problem = next(iter(problems.values()))
    counts = np.where(np.arange(workers) == 0, int(first_problem.total), 0)
    if solution is not None:
        counts = np.asarray(solution.rounded)[:workers]

    def runtime(problem: Problem) -> float | None:
        # By the program that solutions are assessed with.
        padded = jnp.asarray(np.pad(counts, (0, problem.max_workers - workers)))
        return finite(assess(problem, padded, whole_numbers=False).expected_runtime)

    runtimes = np.zeros(0)
    if steps is not None:
        runtimes = traces.replay(steps, first_problem, partition_plan(counts, workers))
    plan = FitPlan(
        name,
        counts.tolist(),
        {law: runtime(problem) for law, problem in problems.items()},
    )
    if solution is not None:
        plan = plan._replace(
            expected_runtime=finite(solution.expected_runtime),
            relative_gap=finite(solution.relative_gap),
            status=status_name(solution),
        )
    if not runtimes.size:
        return plan
    return plan._replace(
        replayed_runtime=float(runtimes.mean()),
        replayed_error=traces.error_of(runtimes),
    )


NO_START_UP = (
    "The plans assume that all time grows with the work. If you know a time that does "
    "not, such as a queue, subtract it from the seconds, and give it to bcgc solve as "
    "--start-up."
)


class FitAnswer(NamedTuple):
    """What there is to say.

    `times`: of the trace, or where there are loads divided by them; `plans`: a row for
    each distribution, `best` the first one's solution.
    """

    trace: Trace
    times: Trace
    description: Description
    remarks: list[str]
    fits: list[Fit]
    plans: list[FitPlan]
    best: Solution


def found_in(question: FitOptions, bar: Progress) -> FitAnswer:
    trace = traces.read_loads(question)
    workers = traces.workers_of(question, trace, question.workers)
    bar.what = "describing"
    times = trace.per_cycle()
    description = describe(times)
    if trace.load is not None:
        description = description._replace(slowness=slowness_in(trace))
    fits = _fits(question, np.asarray(times.seconds), times.censored, bar)
    laws = laws_of(times, description.tail_index.value, fits, workers)
    problems = problems_of(question, trace, laws, workers)
    bar.reach(0, len(problems))
    solutions: dict[str, Solution] = {}
    for name, problem in problems.items():
        bar.begin(f"planning for the distribution `{name}`")
        solutions[name] = solve(problem)
    if all(status_name(solution) == "invalid" for solution in solutions.values()):
        raise ValueError(f"no runtime is known: {OVERFLOW}")
    # Replays know nothing of passes.
    bare = all(problem.bare for problem in problems.values())
    steps = None
    if bare:
        steps = times
    names = (*laws, UNCODED)
    plans = [
        plan_of(name, solutions.get(name), problems, steps, workers) for name in names
    ]
    remarks = remarks_on(trace, description, plans)
    return FitAnswer(
        trace=trace,
        times=times,
        description=description,
        remarks=remarks + traces.forward_in_words(question, trace),
        fits=fits,
        plans=plans,
        best=solutions[names[0]],
    )


def _fits(
    question: FitOptions, seconds: np.ndarray, censored: np.ndarray, bar: Progress
) -> list[Fit]:
    bar.reach(0, len(question.laws) or len(FAMILIES))
    return fit_distributions(
        jax.random.key(question.seed),
        seconds,
        censored,
        distributions=list(question.laws) or None,
        num_replicates=question.replicates,
        progress=lambda name: bar.begin(f"fitting {name}"),
    )


def remarks_on(
    trace: Trace,
    description: Description,
    plans: list[FitPlan],
) -> list[str]:
    remarks = []
    for plan in plans:
        promised = plan.runtime_under.get(MEASURED)
        runtime = plan.replayed_runtime
        if (
            plan.distribution == MEASURED
            and promised is not None
            and runtime is not None
        ):
            name = "the plan for the measured times"
            error = plan.replayed_error or 0.0
            remarks += traces.later_than_promised(name, promised, runtime, error)
    remarks += fewer_chunks_in_words(whole_steps(trace))
    said = [
        remark
        for remark in traces.in_words(description)
        if remark != NOTHING or not remarks
    ]
    said += remarks
    if trace.microbatches is not None:
        return said
    return [*said, NO_START_UP]
