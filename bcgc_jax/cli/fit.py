"""`bcgc fit`: from a log of measured times to a law, and to the plans that this and other laws lead to."""

from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Column

from bcgc_jax.cli.answers import describe_law, save_plan
from bcgc_jax.cli.compilation import padded_workers
from bcgc_jax.cli.exit import interruptible
from bcgc_jax.cli.fit_command import FitOptions
from bcgc_jax.cli.output import (
    Row,
    Shown,
    beside_the_answer,
    console,
    figure,
    finite,
    names,
    one_line_errors,
    print_rows,
    write_json,
    write_rows,
)
from bcgc_jax.cli.progress import Progress
from bcgc_jax.cli.traces import (
    cycles_of_a_step,
    later_than_promised,
    read_loads,
    replayed,
    trace_name,
    whole_steps,
    with_options,
    workers_of,
)
from bcgc_jax.distributions import Distribution
from bcgc_jax.measured.choice import law_of
from bcgc_jax.measured.description import NOTHING, Description, describe
from bcgc_jax.measured.fits import MAX_TIMES, Fit, fit_laws
from bcgc_jax.measured.likelihood import FAMILIES
from bcgc_jax.measured.start_up import StartUpFit, fit_start_up, one_load
from bcgc_jax.measured.traces import Trace
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, assess
from bcgc_jax.solvers.optimum import FEW_UNITS
from bcgc_jax.solvers.solve import solve

# What is planned for, beside the best fit.
MEASURED, HEAVY, UNCODED = "measured times", "smooth, Pareto tail", "uncoded"
APART, TOGETHER = "with start-up", "without start-up"

NO_LOADS = (
    "Which share of the time does not grow with the work (a start-up, a queue) cannot be known from {loads}: "
    "time at least two, better three, and say which in a column `load`."
)


class FitAnswer(NamedTuple):
    """What there is to say.

    `times`: of the trace, those of a cycle, or where there are loads relative to the mean at each, which is
    what `description` and `fits` are of; `plans`: a row for each law, `best` that of the first one;
    `start_up`: where there are loads.
    """

    trace: Trace
    times: Trace
    description: Description
    remarks: list[str]
    fits: list[Fit]
    plans: list[Row]
    best: Solution
    start_up: StartUpFit | None

    @property
    def problem(self) -> Problem:
        """That of the best plan."""
        assert self.best.problem is not None
        return self.best.problem


@one_line_errors
def answer(question: FitOptions) -> None:
    """Of the command."""
    with jax.enable_x64(True), Progress("reading", 1.0, counted=False) as bar:
        found = interruptible(lambda: _answer(question, bar))
    if question.output == "json":
        with jax.enable_x64(True):
            rows = _json(found)
        write_json(rows)
    elif question.output == "csv":
        write_rows(_fit_row(fit) for fit in found.fits)
    else:
        _print(Path(trace_name(question.trace)).name, found)
    if question.out is not None:
        with beside_the_answer(question.out), jax.enable_x64(True):
            save_plan(found.best, question.out)
        if question.output == "table":
            click.echo(f"\nThe plan for {found.plans[0]['law']}: {question.out}")


def _answer(question: FitOptions, bar: Progress) -> FitAnswer:
    trace = read_loads(question.trace, lambda share: bar.reach(share, 1.0))
    workers = workers_of(question.trace, trace, question.workers)
    bar.now("describing")
    start_up, times, cycles = None, trace.per_cycle(), question.cycles or 1.0
    if not one_load(trace):
        start_up = fit_start_up(trace)
        times = _relative(trace, start_up)
        all_loads = start_up.loads[1] * workers / (question.samples * question.coordinates)
        cycles = question.cycles or all_loads
    description = describe(times)
    fits = _fits(question, times, start_up, bar)
    laws = _laws(times, description, fits, workers) if start_up is None else _laws_of_loads(start_up)
    problems = {name: _problem(law, workers, question, cycles) for name, law in laws.items()}
    bar.reach(0, len(laws))
    solutions: dict[str, Solution] = {}
    for name, problem in problems.items():
        bar.now(f"planning for {name}")
        solutions[name] = solve(problem)
        bar.advance()
    steps = whole_steps(times) if start_up is None else np.zeros((0, 0))
    plans = [_plan(name, found, problems, steps, workers) for name, found in solutions.items()]
    plans.append(_plan(UNCODED, None, problems, steps, workers))
    remarks = _remarks(trace, description, plans, start_up)
    best = next(iter(solutions.values()))
    return FitAnswer(trace, times, description, remarks, fits, plans, best, start_up)


def _relative(trace: Trace, start_up: StartUpFit) -> Trace:
    """Of each iteration's largest load the time, as a share of the mean at that load."""
    last = trace.largest_loads()
    assert last.load is not None
    return last._replace(
        seconds=last.seconds / (start_up.means[0] + start_up.means[1] * last.load), load=None
    )


def _fits(question: FitOptions, times: Trace, start_up: StartUpFit | None, bar: Progress) -> list[Fit]:
    """Of times at several loads only the laws that were asked for: plans need none."""
    if start_up is not None and not question.laws:
        return []
    bar.reach(0, len(question.laws) or len(FAMILIES))

    def advance(name: str) -> None:
        bar.now(f"fitting {name}")
        bar.advance()

    return fit_laws(
        jax.random.key(question.seed),
        times.seconds * (1.0 if start_up is None else start_up.means[1]),
        times.censored,
        laws=list(question.laws) or None,
        num_replicates=question.replicates,
        progress=advance,
    )


def _laws(
    trace: Trace, description: Description, fits: list[Fit], workers: int
) -> dict[str, dict[str, Distribution]]:
    """What to plan for: the best fit, the measured times, and if it is heavy their tail."""
    known = {fits[0].name: fits[0].law, MEASURED: law_of(trace.seconds, workers, trace.censored)}
    if description.tail_index.value > 0:
        known[HEAVY] = law_of(trace.seconds, workers, trace.censored, kind="pareto-tail")
    # No plan has a finite runtime under a law without a mean; the measured times have theirs.
    return {name: {"cycle_time": law} for name, law in known.items() if np.isfinite(float(law.mean()))}


def _laws_of_loads(start_up: StartUpFit) -> dict[str, dict[str, Distribution]]:
    """Of start-up and cycle time apart, and as if all time grew with the load: first what to plan for."""
    known = {APART: start_up.apart, TOGETHER: {"cycle_time": start_up.per_cycle}}
    return known if start_up.separable else dict(reversed(known.items()))


def _problem(laws: dict[str, Distribution], workers: int, question: FitOptions, cycles: float) -> Problem:
    # A search over whole units takes N² trials: padding would be felt.
    exact = question.coordinates <= FEW_UNITS or "start_up" in laws
    size = workers if exact else padded_workers(workers, laws["cycle_time"])
    asked: dict[str, Any] = {"num_samples": question.samples, "cycles": cycles, "max_workers": size, **laws}
    return Problem(num_workers=workers, num_coordinates=question.coordinates, **asked)


def _plan(
    name: str, solution: Solution | None, problems: dict[str, Problem], steps: np.ndarray, workers: int
) -> Row:
    """The optimum under a law, or none, and how long it takes under every law, and in whole `steps`."""
    one = next(iter(problems.values()))
    counts = np.zeros(workers, int)
    counts[0] = int(one.total)
    if solution is not None:
        counts = np.asarray(solution.rounded)[:workers]

    def runtime(problem: Problem) -> float | None:
        # By the program that solutions are assessed with.
        padded = jnp.asarray(np.pad(counts, (0, problem.max_workers - workers)))
        return finite(assess(problem, padded, whole_numbers=False).expected_runtime)

    row: Row = {
        "law": name,
        "expected_runtime": None if solution is None else finite(solution.expected_runtime),
        "relative_gap": None if solution is None else finite(solution.relative_gap),
        "status": "converged" if solution is None else Status(int(solution.status)).name.lower(),
        "partition": counts.tolist(),
        "runtime_under": {other: runtime(problem) for other, problem in problems.items()},
    }
    row["replayed_runtime"], row["replayed_error"] = replayed(steps, one, counts)
    return row


def _remarks(
    trace: Trace, description: Description, plans: list[Row], start_up: StartUpFit | None
) -> list[str]:
    more = [] if start_up is None else start_up.remarks()
    for plan in plans:
        promised, taken = plan["runtime_under"].get(MEASURED), plan["replayed_runtime"]
        if plan["law"] == MEASURED and promised is not None and taken is not None:
            name = "the plan for the measured times"
            more += later_than_promised(name, promised, taken, plan["replayed_error"])
    said = [with_options(remark) for remark in description.remarks() if remark != NOTHING or not more]
    if start_up is not None:
        return [*more, *said]
    said += more
    if description.unlike_workers or description.slow_together:
        said.append("bcgc solve --trace FILE --keep-workers plans on whole steps.")
    loads = "one load" if trace.load is None else f"one load, {trace.load[0]:g}"
    return [*said, NO_LOADS.format(loads=loads)]


def _json(answer: FitAnswer) -> Row:
    rows = {
        "trace": answer.description._asdict(),
        "remarks": answer.remarks,
        "fits": [_fit_row(fit) for fit in answer.fits],
        "plans": answer.plans,
    }
    return rows if answer.start_up is None else rows | {"start_up": _start_up_row(answer, answer.start_up)}


def _fit_row(fit: Fit) -> Row:
    rest = {name: value for name, value in fit._asdict().items() if name not in ("name", "law")}
    return {"law": fit.name, "parameters": fit.parameters, **rest}


def _start_up_row(answer: FitAnswer, fit: StartUpFit) -> Row:
    return {
        "start_up": None,
        **{name: describe_law(law) for name, law in fit.apart.items()},
        "mean_start_up": fit.mean_start_up._asdict(),
        "mean_cycle_time": fit.mean_cycle_time._asdict(),
        "num_times": fit.num_times,
        "num_left_out": fit.num_left_out,
        "cycles": float(np.asarray(answer.problem.cycles)),
        "shares": [{"load": load, **fit.share(load)._asdict()} for load in fit.loads],
    }


def _print(file: str, answer: FitAnswer) -> None:
    screen, d, fits, loads = console(), answer.description, answer.fits, ""
    if answer.start_up is not None and answer.trace.load is not None:
        every = np.unique(answer.trace.load)
        loads = f", at {every.size} loads from {every[0]:g} to {every[-1]:g}"
    screen.print(
        f"{file}: {answer.trace.seconds.size} times of {d.num_workers} workers over {d.num_steps} steps"
        + loads
        + (f", {d.num_missing} cells missing" if d.num_missing else "")
        + (f", {d.num_censored} cut off" if d.num_censored else ""),
        markup=False,
    )
    unit = "seconds" if answer.start_up is None else "relative to the mean at their load"
    screen.print(
        f"{unit}: mean {d.mean:.4g}, standard deviation {d.deviation:.3g}, median {d.median:.4g}, "
        f"99 % {d.high:.4g}, largest {d.largest:.4g}\n"
        f"variance between workers {d.between_workers}, common to a step {d.between_steps}\n"
        f"correlation from step to step {d.autocorrelation}, tail index {d.tail_index}\n"
        "(with 95 % intervals)\n"
    )
    if answer.start_up is not None:
        start, cycle = answer.start_up.mean_start_up, answer.start_up.mean_cycle_time
        screen.print(f"mean start-up {start}, mean cycle time {cycle} (± standard error)")
    for remark in answer.remarks:
        screen.print(remark)
    if fits:
        _print_fits(screen, fits)
        if answer.times.seconds.size > MAX_TIMES:
            screen.print(f"Fitted to {MAX_TIMES} of the {answer.times.seconds.size} times, drawn at random.")
    _print_plans(screen, answer)


def _print_fits(screen: Console, fits: list[Fit]) -> None:
    best = fits[0]

    def parameters(fit: Fit) -> str:
        errors = fit.standard_errors
        return ", ".join(f"{name} {value:.4g} ± {errors[name]:.2g}" for name, value in fit.parameters.items())

    screen.print()
    columns: list[Shown] = [
        (names("law"), lambda fit: fit.name),
        (Column("parameters ± standard error"), parameters),
        ("AIC above\nbest", lambda fit: f"{fit.aic - best.aic:.1f}"),
        ("Kolmogorov–\nSmirnov", lambda fit: f"{fit.kolmogorov_smirnov:.4f}"),
        ("p", lambda fit: _pvalue(fit.kolmogorov_smirnov_pvalue)),
        ("Anderson–\nDarling", lambda fit: f"{fit.anderson_darling:.3g}"),
        ("p", lambda fit: _pvalue(fit.anderson_darling_pvalue)),
    ]
    print_rows(fits, columns)
    alike = [fit.name for fit in fits[1:] if fit.aic - best.aic < 2]
    text = f"\nBest: {best.name}" + (f"; {' and '.join(alike)} cannot be told from it" if alike else "")
    if min(best.anderson_darling_pvalue, best.kolmogorov_smirnov_pvalue) < 0.05:
        screen.print(f"{text}. Even it does not describe the times (p < 0.05): plan for the measured ones.")
    else:
        screen.print(f"{text}, and the times may well come from it.")


def _pvalue(value: float) -> str:
    return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def _print_plans(screen: Console, answer: FitAnswer) -> None:
    plans, laws = answer.plans, list(answer.plans[0]["runtime_under"])

    def under(law: str) -> Shown:
        cell = figure(law, ".5g", "infinite")
        return f"under\n{law}", lambda plan: cell(plan["runtime_under"])

    def replayed_runtime(plan: Row) -> str:
        return f"{plan['replayed_runtime']:.5g} ± {plan['replayed_error']:.2g}"

    columns: list[Shown] = [(names("plan for"), lambda plan: plan["law"]), *map(under, laws)]
    if plans[0]["replayed_runtime"] is not None:
        columns.append(("in the steps of\nthe trace", replayed_runtime))
    print_rows(plans, columns, title="\nExpected runtime of each plan")
    if answer.start_up is None:
        screen.print("Of whole coordinates, in seconds times cycles.")
    law = next(law for law in laws if law in (MEASURED, APART))
    values = [plan["runtime_under"][law] for plan in plans[:-1]]
    if None not in values:
        worst = 100 * (max(values) / min(values) - 1)
        screen.print(
            f"\nUnder {law} the choice of what to plan for changes the runtime by at most {worst:.2g} %."
        )
    if answer.start_up is None:
        screen.print(f"\n{cycles_of_a_step(answer.problem)}")
        return
    load = float(answer.problem.scale * answer.problem.total)
    cycles = float(np.asarray(answer.problem.cycles))
    screen.print(
        f"In seconds: b = {cycles:.4g}, of loads of which a worker without redundancy does {load:.4g}."
    )
