"""`bcgc fit`: from a log of measured times to a law, and to the plans that this and other laws lead to."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import numpy as np
from rich.console import Console
from rich.table import Column

from bcgc_jax.cli.compilation import padded_workers
from bcgc_jax.cli.ending import interruptible
from bcgc_jax.cli.estimates import Cost, announce, cost_of
from bcgc_jax.cli.fit_loads import (
    REPLICATES,
    LoadAnswer,
    answer_of_loads,
    draw_answer,
    load_rows,
    print_loads,
)
from bcgc_jax.cli.fit_question import Question
from bcgc_jax.cli.output import (
    beside_the_answer,
    console,
    finite,
    names,
    one_line_errors,
    print_table,
    table,
    write_json,
    write_rows,
)
from bcgc_jax.cli.plans import save_plan
from bcgc_jax.cli.traces import (
    TraceFile,
    cycles_of_a_step,
    later_than_promised,
    law_of_trace,
    whole_steps,
    with_options,
)
from bcgc_jax.cli.waiting import progress
from bcgc_jax.laws import HazardSpline, Law
from bcgc_jax.measured.description import Description, describe
from bcgc_jax.measured.fits import MAX_TIMES, Fit, fit_laws
from bcgc_jax.measured.likelihood import FAMILIES
from bcgc_jax.measured.start_up import one_load
from bcgc_jax.measured.traces import Trace
from bcgc_jax.problem import Problem, Status
from bcgc_jax.runtime import block_runtime, expected_runtime
from bcgc_jax.solution import Solution
from bcgc_jax.solvers.methods import Optimal
from bcgc_jax.solvers.optimum import FEW_UNITS
from bcgc_jax.solvers.solve import solve

# Expectations that an optimum takes, some: their time is what a plan here may take.
_EVALUATIONS = 250
# Seconds of a law, compiling above all, and of a time of a replicate.
_COMPILING, _SECONDS_A_DRAW = 5.0, 5e-7
_SHOWN = 3  # laws in the picture, beside the smooth one

NO_LOADS = (
    "Which share of the time does not grow with the work (a start-up, a queue) cannot be known from {loads}: "
    "time at least two, better three, and say which in a column `load`."
)


MEASURED = "measured times"  # as a law to plan for


class Answer(NamedTuple):
    """The trace, what describes it, and a plan for each law."""

    trace: Trace
    description: Description
    remarks: list[str]
    fits: list[Fit]
    laws: dict[str, Law]
    plans: list[dict[str, Any]]
    best: Solution
    cycles: str


@one_line_errors
def answer(**options: Any) -> None:
    """Of the options of the command."""
    question = Question(**options)
    with jax.enable_x64(True), progress(counted=False) as bar:
        task = bar.add_task("reading", total=1.0)
        answer = interruptible(lambda: _answer(question, bar, task))
    if isinstance(answer, LoadAnswer):
        _tell_of_loads(question, answer)
        return
    if question.output == "json":
        write_json(
            {
                "trace": _description_row(answer.description),
                "remarks": answer.remarks,
                "fits": [_fit_row(fit) for fit in answer.fits],
                "plans": answer.plans,
            }
        )
    elif question.output == "csv":
        write_rows(_fit_row(fit) for fit in answer.fits)
    else:
        _print(Path(TraceFile(question.file, {}).name).name, answer)
    _write_files(question, answer, _draw)


def _tell_of_loads(question: Question, answer: LoadAnswer) -> None:
    if question.output == "json":
        rows = {"fits": [_fit_row(fit) for fit in answer.fit.cycle_time_fits]}
        write_json(load_rows(answer) | rows | {"trace": _description_row(answer.description)})
    elif question.output == "csv":
        write_rows(_fit_row(fit) for fit in answer.fit.cycle_time_fits)
    else:
        print_loads(Path(TraceFile(question.file, {}).name).name, answer)
    _write_files(question, answer, draw_answer)


def _write_files(question: Question, answer: Any, draw: Callable[[str, Any], None]) -> None:
    """The figure and the plan that were asked for beside the answer."""
    if question.figure is not None:
        with beside_the_answer(question.figure), jax.enable_x64(True):
            draw(question.figure, answer)
        if question.output == "table":
            click.echo(f"\nFigure: {question.figure}")
    if question.out is not None:
        with beside_the_answer(question.out), jax.enable_x64(True):
            save_plan(answer.best, len(answer.plans[0]["partition"]), question.out)
        if question.output == "table":
            click.echo(f"\nThe plan for {answer.plans[0]['law']}: {question.out}")


def _answer(question: Question, bar: Any, task: Any) -> Answer | LoadAnswer:
    file = TraceFile(question.file, question.columns)
    trace = file.read_loads(lambda share: bar.update(task, completed=share))
    workers = file.num_workers(trace, question.workers)
    if trace.load is not None and not one_load(trace):
        return answer_of_loads(question, trace, workers, bar, task)
    unknown = NO_LOADS.format(loads="one load" if trace.load is None else f"one load, {trace.load[0]:g}")
    trace = trace.per_cycle()
    _announce(question, trace, workers)
    bar.update(task, description="describing", completed=0)
    description = describe(trace)
    bar.update(task, total=len(question.laws) or len(FAMILIES))

    def advance(name: str) -> None:
        bar.update(task, description=f"fitting {name}")
        bar.advance(task)

    fits = fit_laws(
        jax.random.key(question.seed),
        trace.seconds,
        trace.censored,
        laws=list(question.laws) or None,
        num_replicates=question.replicates or REPLICATES,
        progress=advance,
    )
    laws = _laws(trace, fits, workers)
    bar.update(task, total=len(laws), completed=0)
    plans, steps = [], whole_steps(trace)
    for name in laws:
        bar.update(task, description=f"planning for {name}")
        plans.append(_plan(name, laws, steps, workers, question))
        bar.advance(task)
    rows = [row for row, _ in plans]
    cycles = cycles_of_a_step(_problem(laws[rows[0]["law"]], workers, question))
    remarks = [*_remarks(description, rows), unknown]
    return Answer(trace, description, remarks, fits, laws, rows, plans[0][1], cycles)


def _announce(question: Question, trace: Trace, workers: int) -> None:
    """How long it will take, where that is long; the plans for the best fit are the quickest of all."""
    draws = (question.replicates or REPLICATES) * min(trace.seconds.size, MAX_TIMES)
    fits = Cost((len(question.laws) or len(FAMILIES)) * (_COMPILING + _SECONDS_A_DRAW * draws))
    plans = Cost()
    for kind in ("smooth", "pareto-tail", "atoms"):
        with contextlib.suppress(ValueError):  # as when it comes to them
            law = law_of_trace(trace, kind, workers, num_evaluations=_EVALUATIONS)
            plans = plans.after(cost_of(_problem(law, workers, question), Optimal()))
    remark = "most of it for plans: quicker with fewer --workers" if plans.seconds > fits.seconds else ""
    announce(fits.after(plans), remark)


def _problem(law: Law, workers: int, question: Question) -> Problem:
    # A search over whole units takes N² trials: padding would be felt.
    size = workers if question.coordinates <= FEW_UNITS else padded_workers(workers, law)
    return Problem(
        law, workers, question.coordinates, question.samples, question.cycles_or_one, max_workers=size
    )


def _remarks(description: Description, plans: list[dict[str, Any]]) -> list[str]:
    remarks = [with_options(remark) for remark in description.remarks()]
    for plan in plans:
        promised, taken = plan["runtime_under"].get(MEASURED), plan["replayed_runtime"]
        if plan["law"] == MEASURED and promised is not None and taken is not None:
            name = "the plan for the measured times"
            remarks += later_than_promised(name, promised, taken, plan["replayed_error"])
    if description.unlike_workers or description.slow_together:
        remarks.append("bcgc solve --trace FILE --keep-workers plans on whole steps.")
    return remarks


def _laws(trace: Trace, fits: list[Fit], workers: int) -> dict[str, Law]:
    """What to plan for: the best fit, the measured times themselves, smooth versions of them."""
    known: dict[str, Law] = {fits[0].name: fits[0].law}
    # Too few times, or too few different ones: the atoms are all there is.
    with contextlib.suppress(ValueError):
        heavy = law_of_trace(trace, "pareto-tail", workers)
        assert isinstance(heavy, HazardSpline)
        if float(np.asarray(heavy.tail_index)) > 0:
            known["smooth"] = law_of_trace(trace, "smooth", workers)
            known["smooth, Pareto tail"] = heavy
        else:  # the tail is exponential either way
            known["smooth"] = heavy
    # Times that are cut off, or too many workers for atoms that say something.
    with contextlib.suppress(ValueError):
        known[MEASURED] = law_of_trace(trace, "atoms", workers, num_evaluations=_EVALUATIONS)
    # No plan has a finite runtime under a law without a mean; the others have theirs.
    finite_mean = {name: law for name, law in known.items() if np.isfinite(float(law.mean()))}
    if not finite_mean:
        raise ValueError("the mean of the best law is infinite, and so is every plan's expected runtime")
    return finite_mean


def _plan(
    name: str, laws: dict[str, Law], steps: np.ndarray, workers: int, question: Question
) -> tuple[dict[str, Any], Solution]:
    """The optimum under a law, and how long it takes under every law, and in the whole `steps` of a trace."""
    samples, cycles = question.samples, question.cycles_or_one

    def runtime(problem: Problem) -> float | None:
        padded = np.zeros(problem.max_workers, counts.dtype)
        padded[:workers] = counts
        return finite(expected_runtime(problem, padded))

    solution = solve(_problem(laws[name], workers, question))
    counts = np.asarray(solution.rounded)[:workers]
    runtimes = {other: runtime(_problem(law, workers, question)) for other, law in laws.items()}
    row: dict[str, Any] = {
        "law": name,
        "expected_runtime": finite(solution.expected_runtime),
        "relative_gap": finite(solution.relative_gap),
        "status": Status(int(solution.status)).name.lower(),
        "partition": counts.tolist(),
        "runtime_under": runtimes,
        "replayed_runtime": None,
        "replayed_error": None,
    }
    if workers == steps.shape[1] and len(steps) > 1:
        replayed = np.asarray(block_runtime(counts, steps, num_samples=samples, cycles=cycles))
        row["replayed_runtime"] = float(replayed.mean())
        row["replayed_error"] = float(replayed.std(ddof=1) / np.sqrt(len(replayed)))
    return row, solution


def _draw(path: str, answer: Answer) -> None:
    from bcgc_jax.cli.fit_figure import draw_fit

    laws = {fit.name: fit.law for fit in answer.fits[:_SHOWN]}
    laws |= {name: law for name, law in answer.laws.items() if name.startswith("smooth")}
    figure = draw_fit(answer.trace.seconds, laws, answer.trace.censored)
    figure.savefig(path, dpi=200)


def _fit_row(fit: Fit) -> dict[str, Any]:
    return {
        "law": fit.name,
        "parameters": {name: finite(value) for name, value in fit.parameters.items()},
        "standard_errors": {name: finite(value) for name, value in fit.standard_errors.items()},
        "log_likelihood": finite(fit.log_likelihood),
        "aic": finite(fit.aic),
        "kolmogorov_smirnov": finite(fit.kolmogorov_smirnov),
        "kolmogorov_smirnov_pvalue": finite(fit.kolmogorov_smirnov_pvalue),
        "anderson_darling": finite(fit.anderson_darling),
        "anderson_darling_pvalue": finite(fit.anderson_darling_pvalue),
        "num_times": fit.num_times,
    }


def _description_row(description: Description) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return [finite(v) for v in value] if isinstance(value, tuple) else finite(value)

    return {
        name: value if isinstance(value, int) else plain(value)
        for name, value in description._asdict().items()
    }


def _print(file: str, answer: Answer) -> None:
    screen = console()
    d, fits = answer.description, answer.fits
    screen.print(
        f"{file}: {d.num_times} times of {d.num_workers} workers over {d.num_steps} steps"
        + (f", {d.num_missing} cells missing" if d.num_missing else "")
        + (f", {d.num_censored} cut off" if d.num_censored else ""),
        markup=False,
    )
    screen.print(
        f"seconds: mean {d.mean:.4g}, standard deviation {d.deviation:.3g}, median {d.median:.4g}, "
        f"99 % {d.high:.4g}, largest {d.largest:.4g}"
    )
    screen.print(
        f"variance between workers {d.between_workers}, common to a step {d.between_steps}\n"
        f"correlation from step to step {d.autocorrelation}, tail index {d.tail_index}\n"
        "(with 95 % intervals)\n"
    )
    for remark in answer.remarks:
        screen.print(remark)
    screen.print()
    _print_fits(screen, fits)
    screen.print(_verdict(fits))
    times = answer.trace.seconds.size
    if times > MAX_TIMES:
        screen.print(f"Fitted to {MAX_TIMES} of the {times} times, drawn at random.")
    _print_plans(screen, answer.plans)
    screen.print(f"\n{answer.cycles}")


def _print_fits(screen: Console, fits: list[Fit]) -> None:
    statistics = ("Kolmogorov–\nSmirnov", "p", "Anderson–\nDarling", "p")
    ranked = table(names("law"), Column("parameters ± standard error"), "AIC above\nbest", *statistics)
    for fit in fits:
        values = [
            f"{name} {value:.4g} ± {fit.standard_errors[name]:.2g}" for name, value in fit.parameters.items()
        ]
        ranked.add_row(
            fit.name,
            ", ".join(values),
            f"{fit.aic - fits[0].aic:.1f}",
            f"{fit.kolmogorov_smirnov:.4f}",
            _pvalue(fit.kolmogorov_smirnov_pvalue),
            f"{fit.anderson_darling:.3g}",
            _pvalue(fit.anderson_darling_pvalue),
        )
    print_table(ranked)


def _pvalue(value: float) -> str:
    return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def _verdict(fits: list[Fit]) -> str:
    best = fits[0]
    alike = [fit.name for fit in fits[1:] if fit.aic - best.aic < 2]
    text = f"\nBest: {best.name}"
    if alike:
        text += f"; {' and '.join(alike)} cannot be told from it"
    if min(best.anderson_darling_pvalue, best.kolmogorov_smirnov_pvalue) < 0.05:
        text += ". Even it does not describe the times (p < 0.05): plan for the measured ones."
    else:
        text += ", and the times may well come from it."
    return text


def _print_plans(screen: Console, plans: list[dict[str, Any]]) -> None:
    laws = list(plans[0]["runtime_under"])
    screen.print()
    replayed = plans[0]["replayed_runtime"] is not None
    heads = [f"under\n{law}" for law in laws] + ["in the steps of\nthe trace"] * replayed
    compared = table(names("plan for"), *heads, title="Expected runtime of each plan")
    for plan in plans:
        cells = [_runtime(plan["runtime_under"][law]) for law in laws]
        if replayed:
            cells.append(f"{plan['replayed_runtime']:.5g} ± {plan['replayed_error']:.2g}")
        compared.add_row(plan["law"], *cells)
    print_table(compared)
    screen.print("Of whole coordinates, in seconds times cycles.")
    worst = 0.0
    for law in [law for law in laws if law == MEASURED] or laws:
        values = [plan["runtime_under"][law] for plan in plans]
        if all(v is not None for v in values):
            worst = max(worst, max(values) / min(values) - 1)
    screen.print(f"\nThe choice of the law to plan for changes the runtime by at most {100 * worst:.2g} %.")


def _runtime(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.5g}"
