"""`bcgc fit`: from a log of measured times to a distribution, and to plans for it and others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Column

from bcgc_jax.cli import output, plot, traces
from bcgc_jax.cli.answers import describe_law, save_plan, status_name
from bcgc_jax.cli.commands import FitOptions
from bcgc_jax.cli.compilation import padded
from bcgc_jax.cli.exit import interruptible
from bcgc_jax.cli.logs import log_name
from bcgc_jax.cli.output import Row, Shown, finite, print_lines
from bcgc_jax.cli.progress import Progress
from bcgc_jax.distributions import Distribution
from bcgc_jax.measured.choice import distribution_of
from bcgc_jax.measured.description import NOTHING, Description, describe
from bcgc_jax.measured.fits import MAX_TIMES, Fit, fit_distributions
from bcgc_jax.measured.left_out import fewer_chunks_in_words
from bcgc_jax.measured.likelihood import FAMILIES
from bcgc_jax.measured.slowness import Slowness, slowness_in
from bcgc_jax.measured.start_up import StartUpFit, fit_start_up, one_load
from bcgc_jax.measured.traces import Trace
from bcgc_jax.measured.words import counted
from bcgc_jax.plans.plan import partition_plan
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution, assess
from bcgc_jax.solvers.solve import solve

# What is planned for, beside the best fit.
MEASURED = "measured times"
HEAVY = "smooth, Pareto tail"
UNCODED = "uncoded"
APART = "with start-up"
TOGETHER = "without start-up"

NO_LOADS = (
    "The trace has {loads}. So it cannot tell which share of the time does not grow with the work "
    "(a start-up, a queue): time at least two loads, better three, and write them in a column "
    "`load`."
)


class FitAnswer(NamedTuple):
    """What there is to say.

    `times`: of the trace, or where there are loads relative to the mean at each, which is what
    `description` is of; `seconds`: what `fits` are of; `plans`: a row for each distribution, `best`
    the first one's solution; `start_up`: with loads.
    """

    trace: Trace
    times: Trace
    seconds: np.ndarray
    description: Description
    remarks: list[str]
    fits: list[Fit]
    plans: list[Row]
    best: Solution
    start_up: StartUpFit | None


def answer(question: FitOptions) -> None:
    with jax.enable_x64(True):
        with Progress("reading") as bar:
            fitted = interruptible(lambda: _answer(question, bar))
        file = Path(log_name(question.trace)).name
        rows = [_fit_row(fit) for fit in fitted.fits]
        laws = [(fit.name, fit.distribution) for fit in fitted.fits]

        def draw() -> Any:
            return plot.fits(fitted.seconds, fitted.times.censored, laws)

        def write(path: str) -> None:
            save_plan(fitted.best, fitted.best.problem, path)

        def document() -> Row:
            return _json(fitted, rows)

        output.print_answer(question, rows, document, lambda: _print(file, fitted))
        output.write_figure(question, draw)
        planned = f"The plan for {fitted.plans[0]['distribution']}"
        output.write_beside(question, question.out, planned, write)


def _answer(question: FitOptions, bar: Progress) -> FitAnswer:
    trace = traces.read_loads(question)
    workers = traces.workers_of(question, trace, question.workers)
    bar.what = "describing"
    start_up = None if one_load(trace) else fit_start_up(trace)
    times = trace.per_cycle()
    seconds = np.asarray(times.seconds)
    if start_up is not None:
        times = _over_mean(trace, start_up)
        seconds = np.asarray(times.seconds * start_up.means[1])
    description = describe(times)
    if trace.load is not None:
        description = description._replace(slowness=slowness_in(trace))
    fits: list[Fit] = []
    if start_up is None or question.laws:  # plans for times at several loads need no fit
        fits = _fits(question, seconds, times.censored, bar)
    laws = _laws(times, description, fits, start_up, workers)
    problems = _problems(question, trace, laws, start_up, workers)
    bar.reach(0, len(problems))
    solutions: dict[str, Solution] = {}
    for name, problem in problems.items():
        bar.begin(f"planning for the distribution `{name}`")
        solutions[name] = solve(problem)
    # Replays know nothing of start-ups and passes.
    bare = start_up is None and all(problem.bare for problem in problems.values())
    steps = times if bare else None
    names = (*laws, UNCODED)
    plans = [_plan(name, solutions.get(name), problems, steps, workers) for name in names]
    remarks = _remarks(trace, description, plans, start_up)
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


def _problems(
    question: FitOptions,
    trace: Trace,
    laws: dict[str, dict[str, Distribution]],
    start_up: StartUpFit | None,
    workers: int,
) -> dict[str, Problem]:
    """Return the problem under each distribution; ValueError where one is too large."""
    cycles = question.cycles
    if cycles is None and start_up is not None:
        cycles = start_up.loads[1] * workers / (question.samples * question.coordinates)
    cycles = cycles or 1.0
    sizes: dict[str, Any] = {"num_workers": workers, "num_coordinates": question.coordinates}
    sizes |= {"num_samples": question.samples, "cycles": cycles}
    sizes |= question.passes(question.coordinates, cycles, traces.measured_forward(trace))
    problems = {name: padded(Problem(**{**sizes, **law})) for name, law in laws.items()}
    for problem in problems.values():
        traces.check_size(problem, "fewer times")
    return problems


def _laws(
    trace: Trace,
    description: Description,
    fits: list[Fit],
    start_up: StartUpFit | None,
    workers: int,
) -> dict[str, dict[str, Distribution]]:
    """Return the distributions to plan for, by name, as keywords of `Problem`; the best is first.

    They are the best fit, the measured times, and these with a Pareto tail if it is heavy. With
    loads they are start-up and cycle time apart, and as if all time grew with the load.
    """
    if start_up is not None:
        both = {APART: start_up.apart, TOGETHER: {"cycle_time": start_up.per_cycle}}
        return both if start_up.separable else dict(reversed(both.items()))
    laws = {
        fits[0].name: fits[0].distribution,
        MEASURED: distribution_of(trace.seconds, workers, trace.censored),
    }
    if description.tail_index.value > 0:
        laws[HEAVY] = distribution_of(trace.seconds, workers, trace.censored, kind="pareto-tail")
    # No plan has a finite runtime under a distribution without a mean.
    finite_laws = {name: law for name, law in laws.items() if np.isfinite(float(law.mean()))}
    return {name: {"cycle_time": law} for name, law in finite_laws.items()}


def _plan(
    name: str,
    solution: Solution | None,
    problems: dict[str, Problem],
    steps: Trace | None,
    workers: int,
) -> Row:
    """Describe a plan: the optimum under a distribution, or uncoded without a `solution`.

    It has the runtime under each distribution, and the mean in whole `steps`.
    """
    one = next(iter(problems.values()))
    counts = np.where(np.arange(workers) == 0, int(one.total), 0)
    if solution is not None:
        counts = np.asarray(solution.rounded)[:workers]

    def runtime(problem: Problem) -> float | None:
        # By the program that solutions are assessed with.
        padded = jnp.asarray(np.pad(counts, (0, problem.max_workers - workers)))
        return finite(assess(problem, padded, whole_numbers=False).expected_runtime)

    taken = np.zeros(0)
    if steps is not None:
        taken = traces.replay(steps, one, partition_plan(counts, workers))
    return {
        "distribution": name,
        "expected_runtime": None if solution is None else finite(solution.expected_runtime),
        "relative_gap": None if solution is None else finite(solution.relative_gap),
        "status": "converged" if solution is None else status_name(solution),
        "partition": counts.tolist(),
        "runtime_under": {other: runtime(problem) for other, problem in problems.items()},
        "replayed_runtime": float(taken.mean()) if taken.size else None,
        "replayed_error": traces.error_of(taken) if taken.size else None,
    }


def _remarks(
    trace: Trace, description: Description, plans: list[Row], start_up: StartUpFit | None
) -> list[str]:
    more = [] if start_up is None else start_up.remarks()
    for plan in plans:
        promised = plan["runtime_under"].get(MEASURED)
        taken = plan["replayed_runtime"]
        if plan["distribution"] == MEASURED and promised is not None and taken is not None:
            name = "the plan for the measured times"
            more += traces.later_than_promised(name, promised, taken, plan["replayed_error"])
    more += fewer_chunks_in_words(trace)
    said = [remark for remark in traces.in_words(description) if remark != NOTHING or not more]
    if start_up is not None:
        return [*more, *said]
    said += more
    lost = description.slowness
    if lost is not None and not lost.alike and (lost.unlike_workers or lost.slow_together):
        said.append("bcgc solve --trace FILE --keep-workers plans on whole steps.")
    if trace.microbatches is not None:
        return said
    loads = "one load" if trace.load is None else f"one load, {trace.load[0]:g}"
    return [*said, NO_LOADS.format(loads=loads)]


def _json(answer: FitAnswer, fits: list[Row]) -> Row:
    fit = answer.start_up
    problem = answer.best.problem
    trace = answer.description._asdict()
    lost = trace.pop("slowness")
    for name in ("step", "balanced", "causes", "together"):
        trace[name] = None if lost is None else getattr(lost, name)
    trace["slow_workers"] = [] if lost is None else [one._asdict() for one in lost.slow_workers]
    rows = {"trace": trace, "remarks": answer.remarks, "fits": fits, "plans": answer.plans}
    if fit is None or problem is None:
        return rows
    return rows | {
        "start_up": {
            "start_up": None,
            **{name: describe_law(law) for name, law in fit.apart.items()},
            "mean_start_up": fit.mean_start_up._asdict(),
            "mean_cycle_time": fit.mean_cycle_time._asdict(),
            "num_times": fit.num_times,
            "num_left_out": fit.num_left_out,
            "cycles": float(np.asarray(problem.cycles)),
            "shares": [{"load": load, **fit.share(load)._asdict()} for load in fit.loads],
        }
    }


def _fit_row(fit: Fit) -> Row:
    rest = fit._asdict()
    del rest["name"], rest["distribution"]
    return {"distribution": fit.name, "parameters": fit.parameters, **rest}


def _print(file: str, answer: FitAnswer) -> None:
    d = answer.description
    start_up = answer.start_up
    unit = "seconds" if start_up is None else "relative to the mean at their load"
    print_lines(
        f"{file}: {', '.join(_trace_in_words(answer.trace, d))}",
        f"{unit}: mean {d.mean:.4g}, standard deviation {d.deviation:.3g}, median {d.median:.4g}, "
        f"99 % {d.high:.4g}, largest {d.largest:.4g}",
        *_lost_in_words(d.slowness),
        f"correlation of a worker's time with its next {d.autocorrelation}",
        f"tail index {d.tail_index}, where 0 is exponential and from 1 on the mean is infinite",
        "(in brackets: 95 % intervals)\n",
    )
    if start_up is not None:
        start = start_up.mean_start_up
        cycle = start_up.mean_cycle_time
        print_lines(f"mean start-up {start}, mean cycle time {cycle} (± standard error)")
    print_lines(*answer.remarks)
    if answer.fits:
        _print_fits(answer.fits, answer.seconds.size)
    _print_plans(answer)


def _trace_in_words(trace: Trace, description: Description) -> Iterator[str]:
    workers = counted(description.num_workers, "worker")
    times = f"{counted(trace.seconds.size, 'time')} of {workers}"
    yield f"{times} over {counted(description.num_steps, 'step')}"
    if trace.microbatches is not None:
        yield f"of {counted(trace.microbatches.seconds.shape[2], 'chunk')} each"
    if not one_load(trace):
        loads = np.unique(np.asarray(trace.load))
        yield f"at {loads.size} loads from {loads[0]:g} to {loads[-1]:g}"
    if description.num_missing:
        yield f"{counted(description.num_missing, 'time')} missing"
    if description.num_censored:
        yield f"{description.num_censored} cut off"


def _lost_in_words(lost: Slowness | None) -> list[str]:
    if lost is None:
        return []
    ended = f"{lost.balanced:.4g} s if all workers ended together"
    text = f"a step takes {lost.step:.4g} s, and {ended}"
    if lost.left_out:
        text += f"; without the {lost.left_out} in which a worker has no whole time"
    return [text]


def _print_fits(fits: list[Fit], num_times: int) -> None:
    best = fits[0]

    def parameters(fit: Fit) -> str:
        values = fit.parameters
        errors = fit.standard_errors
        return ", ".join(f"{name} {values[name]:.4g} ± {errors[name]:.2g}" for name in values)

    def pvalue(value: float) -> str:
        return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"

    print_lines("")
    columns: list[Shown] = [
        (output.names("distribution"), lambda fit: fit.name),
        (Column("parameters ± standard error"), parameters),
        ("AIC above\nbest", lambda fit: f"{fit.aic - best.aic:.1f}"),
        ("Kolmogorov–\nSmirnov", lambda fit: f"{fit.kolmogorov_smirnov:.4f}"),
        ("p", lambda fit: pvalue(fit.kolmogorov_smirnov_pvalue)),
        ("Anderson–\nDarling", lambda fit: f"{fit.anderson_darling:.3g}"),
        ("p", lambda fit: pvalue(fit.anderson_darling_pvalue)),
    ]
    output.print_rows(fits, columns)
    alike = " and ".join(fit.name for fit in fits[1:] if fit.aic - best.aic < 2)
    if min(best.anderson_darling_pvalue, best.kolmogorov_smirnov_pvalue) < 0.05:
        verdict = ". Even it does not describe the times (p < 0.05): plan for the measured times."
    else:
        verdict = ", and the times may well come from it."
    print_lines(f"\nBest: {best.name}{alike and f'; {alike} cannot be told from it'}{verdict}")
    if num_times > MAX_TIMES:
        print_lines(f"Fitted to {MAX_TIMES} of the {num_times} times, drawn at random.")


def _print_plans(answer: FitAnswer) -> None:
    plans = answer.plans
    laws = list(answer.plans[0]["runtime_under"])
    problem = answer.best.problem
    assert problem is not None
    unit, name = traces.unit_of(answer.trace, problem)
    if answer.start_up is not None:
        unit = 1.0
        load = float(problem.scale * problem.total)
        cycles = float(np.asarray(problem.cycles))
        name = (
            f"seconds: b = {cycles:.4g}, and a worker without redundancy does a load of {load:.4g}"
        )

    def under(law: str) -> Shown:
        def cell(plan: Row) -> str:
            value = plan["runtime_under"][law]
            return "infinite" if value is None else f"{value / unit:.5g}"

        return f"under\n{law}", cell

    def replayed(plan: Row) -> str:
        return f"{plan['replayed_runtime'] / unit:.5g} ± {plan['replayed_error'] / unit:.2g}"

    columns: list[Shown] = [(output.names("plan for"), lambda plan: plan["distribution"])]
    columns += map(under, laws)
    if plans[0]["replayed_runtime"] is not None:
        columns.append(("in the steps of\nthe trace", replayed))
    output.print_rows(plans, columns, title="\nExpected runtime of each plan")
    print_lines(f"Runtimes are of whole coordinates, in {name}.")
    law = next(law for law in laws if law in (MEASURED, APART))
    values = [plan["runtime_under"][law] for plan in plans[:-1]]
    if None not in values:
        worst = f"changes the runtime by at most {100 * (max(values) / min(values) - 1):.2g} %"
        print_lines(f"\nUnder {law} the choice of what to plan for {worst}.")
