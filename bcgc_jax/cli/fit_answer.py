"""What `bcgc fit` finds: fits, plans and remarks on a log."""

from typing import NamedTuple

import jax
import numpy as np

from bcgc_jax.cli import traces
from bcgc_jax.cli.commands import FitOptions
from bcgc_jax.cli.describe import status_name
from bcgc_jax.cli.fit_plans import (
    MEASURED,
    UNCODED,
    FitPlan,
    laws_of,
    plan_of,
    problems_of,
)
from bcgc_jax.cli.progress import Progress
from bcgc_jax.cli.solve_table import OVERFLOW
from bcgc_jax.measured.description import NOTHING, Description, describe
from bcgc_jax.measured.fits import FAMILIES, Fit, fit_distributions
from bcgc_jax.measured.left_out import fewer_chunks_in_words
from bcgc_jax.measured.slowness import slowness_in
from bcgc_jax.measured.traces import Trace
from bcgc_jax.measured.whole_steps import whole_steps
from bcgc_jax.solution import Solution
from bcgc_jax.solvers.solve import solve

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
