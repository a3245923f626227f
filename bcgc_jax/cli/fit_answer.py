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
from bcgc_jax.measured.start_up import StartUpFit, fit_start_up, one_load
from bcgc_jax.measured.traces import Trace
from bcgc_jax.measured.whole_steps import whole_steps
from bcgc_jax.solution import Solution
from bcgc_jax.solvers.solve import solve

NO_LOADS = (
    "The trace has {loads}. So it cannot tell which share of the time does not grow "
    "with the work (a start-up, a queue): time at least two loads, better three, and "
    "write them in a column `load`."
)


class FitAnswer(NamedTuple):
    """What there is to say.

    `times`: of the trace, or where there are loads relative to the mean at each, which
    is what `description` is of; `seconds`: what `fits` are of; `plans`: a row for each
    distribution, `best` the first one's solution; `start_up`: with loads.
    """

    trace: Trace
    times: Trace
    seconds: np.ndarray
    description: Description
    remarks: list[str]
    fits: list[Fit]
    plans: list[FitPlan]
    best: Solution
    start_up: StartUpFit | None


def found_in(question: FitOptions, bar: Progress) -> FitAnswer:
    trace = traces.read_loads(question)
    workers = traces.workers_of(question, trace, question.workers)
    bar.what = "describing"
    start_up = None
    if not one_load(trace):
        start_up = fit_start_up(trace)
    times = trace.per_cycle()
    seconds = np.asarray(times.seconds)
    if start_up is not None:
        times = _over_mean(trace, start_up)
        seconds = np.asarray(times.seconds * start_up.means[1])
    description = describe(times)
    if trace.load is not None:
        description = description._replace(slowness=slowness_in(trace))
    fits: list[Fit] = []
    # Plans for times at several loads need no fit.
    if start_up is None or question.laws:
        fits = _fits(question, seconds, times.censored, bar)
    laws = laws_of(times, description.tail_index.value, fits, start_up, workers)
    problems = problems_of(question, trace, laws, start_up, workers)
    bar.reach(0, len(problems))
    solutions: dict[str, Solution] = {}
    for name, problem in problems.items():
        bar.begin(f"planning for the distribution `{name}`")
        solutions[name] = solve(problem)
    if all(status_name(solution) == "invalid" for solution in solutions.values()):
        raise ValueError(f"no runtime is known: {OVERFLOW}")
    # Replays know nothing of start-ups and passes.
    bare = start_up is None and all(problem.bare for problem in problems.values())
    steps = None
    if bare:
        steps = times
    names = (*laws, UNCODED)
    plans = [
        plan_of(name, solutions.get(name), problems, steps, workers) for name in names
    ]
    remarks = remarks_on(trace, description, plans, start_up)
    return FitAnswer(
        trace=trace,
        times=times,
        seconds=seconds,
        description=description,
        remarks=remarks + traces.forward_in_words(question, trace),
        fits=fits,
        plans=plans,
        best=solutions[names[0]],
        start_up=start_up,
    )


def _over_mean(trace: Trace, start_up: StartUpFit) -> Trace:
    """Divide the time of each iteration's largest load by the mean at that load."""
    last = trace.largest_loads()
    start, cycle = start_up.means
    seconds = last.seconds / (start + cycle * np.asarray(last.load))
    return last._replace(seconds=seconds, load=None)


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
    start_up: StartUpFit | None,
) -> list[str]:
    remarks = []
    if start_up is not None:
        remarks = start_up.remarks()
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
    if start_up is not None:
        return [*remarks, *said]
    said += remarks
    lost = description.slowness
    if (
        lost is not None
        and not lost.alike
        and (lost.unlike_workers or lost.slow_together)
    ):
        said.append("bcgc solve --trace FILE --keep-workers plans on whole steps.")
    if trace.microbatches is not None:
        return said
    loads = "one load"
    if trace.load is not None:
        loads = f"one load, {trace.load[0]:g}"
    return [*said, NO_LOADS.format(loads=loads)]
