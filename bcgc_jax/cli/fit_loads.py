"""`bcgc fit` of a trace of several loads: start-up and cycle time apart, and what that means for a plan."""

from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Column

from bcgc_jax.cli.compilation import padded_workers
from bcgc_jax.cli.fit_question import Question
from bcgc_jax.cli.law_output import describe_law
from bcgc_jax.cli.output import console, finite, names, print_table, table
from bcgc_jax.cli.traces import with_options
from bcgc_jax.laws import Law
from bcgc_jax.measured.description import NOTHING, Description, describe
from bcgc_jax.measured.fits import Fit
from bcgc_jax.measured.likelihood import FAMILIES
from bcgc_jax.measured.smooth import smooth_empirical
from bcgc_jax.measured.start_up import StartUpFit, check_loads, fit_start_up
from bcgc_jax.measured.start_up_moments import Estimate
from bcgc_jax.measured.traces import Trace
from bcgc_jax.problem import Problem, Status
from bcgc_jax.runtime import expected_runtime
from bcgc_jax.solution import Solution
from bcgc_jax.solvers.optimum import FEW_UNITS
from bcgc_jax.solvers.solve import solve

APART, TOGETHER, UNCODED = "with start-up", "without start-up", "uncoded"
# Samples behind the errors of a fit.
REPLICATES = 200
# Loads that are shown one by one.
_SHOWN = 6


class LoadAnswer(NamedTuple):
    """The trace, its times relative to the mean at their load described, the fit, and the plans."""

    trace: Trace
    description: Description
    remarks: list[str]
    fit: StartUpFit
    cycles: float
    load: float
    plans: list[dict[str, Any]]
    best: Solution


def answer_of_loads(question: Question, trace: Trace, workers: int, bar: Any, task: Any) -> LoadAnswer:
    check_loads(trace)
    bar.update(task, total=len(question.laws) or len(FAMILIES), completed=0)

    def advance(what: str) -> None:
        bar.update(task, description=f"fitting {what}")
        bar.advance(task)

    fit = fit_start_up(
        jax.random.key(question.seed),
        trace,
        laws=list(question.laws) or None,
        num_replicates=question.replicates or REPLICATES,
        progress=advance,
    )
    assert trace.load is not None
    last = trace.largest_loads()
    assert last.load is not None
    expected = fit.means[0] + fit.means[1] * last.load
    description = describe(last._replace(seconds=last.seconds / expected, load=None))
    cycles = question.cycles
    if cycles is None:
        cycles = fit.loads[1] * workers / (question.samples * question.coordinates)
    bar.update(task, total=2, completed=0)
    plans, best = _plans(question, trace, fit, workers, cycles, bar, task)
    said = [with_options(remark) for remark in description.remarks() if remark != NOTHING]
    remarks = [*fit.remarks(), *_lonely(trace), *said]
    load = cycles * question.samples * question.coordinates / workers
    return LoadAnswer(trace, description, remarks, fit, cycles, load, plans, best)


def _lonely(trace: Trace) -> list[str]:
    """Workers of whom nothing is known but one time."""
    counts = np.bincount(trace.largest_loads().worker, minlength=trace.num_workers)
    few = trace.worker_names[counts == 1].tolist()
    if not few:
        return []
    who = f"Worker {few[0]} has" if len(few) == 1 else f"{len(few)} workers have"
    return [f"{who} one time only: it counts in the laws, but whether it is a slow one cannot be said."]


def _plans(
    question: Question, trace: Trace, fit: StartUpFit, workers: int, cycles: float, bar: Any, task: Any
) -> tuple[list[dict[str, Any]], Solution]:
    """The plans for both models and none, and what they take under both."""

    def problem(cycle_time: Law, **with_start: Any) -> Problem:
        few = question.coordinates <= FEW_UNITS or bool(with_start)
        size = workers if few else padded_workers(workers, cycle_time)
        return Problem(
            cycle_time,
            workers,
            question.coordinates,
            question.samples,
            cycles,
            max_workers=size,
            **with_start,
        )

    rates = trace.per_cycle()
    alone = smooth_empirical(rates.seconds, rates.censored)
    problems = {APART: problem(**fit.laws), TOGETHER: problem(alone)}
    solutions = {}
    for name, asked in problems.items():
        bar.update(task, description=f"planning for {name}")
        solutions[name] = solve(asked)
        bar.advance(task)
    counts = {name: np.asarray(found.rounded)[:workers] for name, found in solutions.items()}
    counts[UNCODED] = np.array([question.coordinates] + [0] * (workers - 1))

    def runtime(asked: Problem, plan: np.ndarray) -> float | None:
        padded = np.zeros(asked.max_workers, plan.dtype)
        padded[:workers] = plan
        return finite(expected_runtime(asked, padded))

    rows = [
        {
            "law": name,
            "expected_runtime": finite(solutions[name].expected_runtime) if name in solutions else None,
            "relative_gap": finite(solutions[name].relative_gap) if name in solutions else None,
            "status": Status(int(solutions[name].status)).name.lower() if name in solutions else "converged",
            "partition": plan.tolist(),
            "runtime_under": {other: runtime(asked, plan) for other, asked in problems.items()},
            "replayed_runtime": None,
            "replayed_error": None,
        }
        for name, plan in counts.items()
    ]
    return rows, solutions[APART]


def _errors(fits: list[Fit]) -> dict[str, float]:
    """Standard errors of the best law's parameters; of a constant none."""
    return fits[0].standard_errors if fits else {}


def load_rows(answer: LoadAnswer) -> dict[str, Any]:
    """What is written as JSON, without the fits and the description of the trace."""
    fit = answer.fit
    low, mean, high = fit.loads

    def plain(estimate: Estimate) -> dict[str, float | None]:
        return {"value": finite(estimate.value), "error": finite(estimate.error)}

    def law(found: Law | None, fits: list[Fit]) -> dict[str, Any] | None:
        if found is None:
            return None
        errors = {name: finite(error) for name, error in _errors(fits).items()}
        return {"law": describe_law(found), "standard_errors": errors}

    return {
        "trace": {},
        "remarks": answer.remarks,
        "start_up": {
            "start_up": law(fit.start_up, fit.start_up_fits),
            "cycle_time": law(fit.cycle_time, fit.cycle_time_fits),
            "mean_start_up": plain(fit.mean_start_up),
            "mean_cycle_time": plain(fit.mean_cycle_time),
            "shares": [{"load": load, **plain(fit.share(load))} for load in (low, mean, high)],
            "rank_correlation": [finite(v) for v in fit.rank_correlation],
            "load_covariance": plain(fit.load_covariance),
            "dependent": int(fit.dependent),
            "num_times": fit.num_times,
            "num_left_out": fit.num_left_out,
            "cycles": answer.cycles,
        },
        "plans": answer.plans,
    }


def draw_answer(path: str, answer: LoadAnswer) -> None:
    from bcgc_jax.cli.load_figure import draw_loads

    draw_loads(answer.trace, answer.fit).savefig(path, dpi=200)


def print_loads(file: str, answer: LoadAnswer) -> None:
    screen, trace, d = console(), answer.trace, answer.description
    assert trace.load is not None
    loads = np.unique(trace.load)
    screen.print(
        f"{file}: {trace.seconds.size} times of {d.num_workers} workers over {d.num_steps} steps, at "
        f"{loads.size} loads from {loads[0]:g} to {loads[-1]:g}"
        + (f", {d.num_missing} cells missing" if d.num_missing else "")
        + (f", {d.num_censored} cut off" if d.num_censored else ""),
        markup=False,
    )
    if loads.size <= _SHOWN:
        whole = ~trace.censored
        means = [f"{trace.seconds[whole & (trace.load == y)].mean():.4g} at {y:g}" for y in loads]
        screen.print(f"mean seconds {', '.join(means)}")
    screen.print(
        f"relative to the mean at their load: standard deviation {d.deviation:.3g}, median {d.median:.3g}, "
        f"99 % {d.high:.3g}\nvariance between workers {d.between_workers}, common to a step "
        f"{d.between_steps}\ncorrelation from step to step {d.autocorrelation}, tail index {d.tail_index}\n"
        "(with 95 % intervals)\n"
    )
    _print_fit(screen, answer.fit)
    for remark in answer.remarks:
        screen.print(remark)
    _print_plans(screen, answer)


def _print_fit(screen: Console, fit: StartUpFit) -> None:
    laws = table(names(""), Column("law"), Column("parameters ± standard error"), "mean")
    for what, law, fits, mean in (
        ("start-up", fit.start_up, fit.start_up_fits, fit.mean_start_up),
        ("cycle time", fit.cycle_time, fit.cycle_time_fits, fit.mean_cycle_time),
    ):
        values = [f"{name} {Estimate(float(getattr(law, name)), e)}" for name, e in _errors(fits).items()]
        kind = "none" if law is None else type(law).__name__
        laws.add_row(what, kind, ", ".join(values), str(mean))
    print_table(laws)
    screen.print()


def _print_plans(screen: Console, answer: LoadAnswer) -> None:
    plans = answer.plans
    compared = table(
        names("plan for"), f"under\n{APART}", f"under\n{TOGETHER}", title="\nExpected runtime of each plan"
    )
    for plan in plans:
        cells = ["infinite" if v is None else f"{v:.5g}" for v in plan["runtime_under"].values()]
        compared.add_row(plan["law"], *cells)
    print_table(compared)
    screen.print(
        f"In seconds: b = {answer.cycles:.4g}, of loads of which a worker without redundancy does "
        f"{answer.load:.4g}."
    )
    apart, together, uncoded = (plan["runtime_under"][APART] for plan in plans)
    if None in (apart, together, uncoded):
        return
    assumed = "" if answer.fit.pairs is not None else ", were the start-up constant"
    screen.print(
        f"\nPlanned as if all time grew with the load, it takes {100 * (together / apart - 1):.2g} % longer "
        f"than it need{assumed}. The best one takes {100 * (1 - apart / uncoded):.2g} % less than no coding."
    )
