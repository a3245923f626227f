"""What a person reads of `bcgc fit`: the log in short, the fits, and the plans."""

from collections.abc import Iterator

import numpy as np

from bcgc_jax.cli import output, traces
from bcgc_jax.cli.columns import FITS, PLANS, table_of
from bcgc_jax.cli.fit_answer import MEASURED, FitAnswer, FitPlan
from bcgc_jax.cli.output import Shown, print_lines
from bcgc_jax.diagnosis.description import Description
from bcgc_jax.diagnosis.slowness import Slowness
from bcgc_jax.traces.fits import MAX_TIMES, Fit
from bcgc_jax.traces.trace import Trace
from bcgc_jax.traces.units import counted


def print_answer(file: str, answer: FitAnswer) -> None:
    d = answer.description
    unit = "seconds"
    if answer.trace.load is not None:
        unit = "seconds over load"
    print_lines(
        f"{file}: {', '.join(_trace_in_words(answer.trace, d))}",
        f"{unit}: mean {d.mean:.4g}, standard deviation {d.deviation:.3g}, median "
        f"{d.median:.4g}, 99 % {d.high:.4g}, largest {d.largest:.4g}",
        *_lost_in_words(d.slowness),
        f"correlation of a worker's time with its next {d.autocorrelation}",
        (
            f"tail index {d.tail_index}, where 0 is exponential and from 1 on the mean "
            "is infinite"
        ),
        "(in brackets: 95 % intervals)\n",
    )
    print_lines(*answer.remarks)
    _print_fits(answer.fits, answer.times.seconds.size)
    _print_plans(answer)


def _trace_in_words(trace: Trace, description: Description) -> Iterator[str]:
    workers = counted(description.num_workers, "worker")
    times = f"{counted(trace.seconds.size, 'time')} of {workers}"
    yield f"{times} over {counted(description.num_steps, 'step')}"
    if trace.microbatches is not None:
        yield f"of {counted(trace.microbatches.seconds.shape[2], 'chunk')} each"
    loads = np.unique(np.zeros(1) if trace.load is None else np.asarray(trace.load))
    if loads.size > 1:
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
    above: Shown = "AIC above\nbest", lambda fit: f"{fit.aic - best.aic:.1f}"
    print_lines("")
    output.print_rows(fits, table_of(FITS, fits, aic=[above]))
    alike = " and ".join(fit.name for fit in fits[1:] if fit.aic - best.aic < 2)
    if min(best.anderson_darling_pvalue, best.kolmogorov_smirnov_pvalue) < 0.05:
        verdict = (
            ". Even it does not describe the times (p < 0.05): plan for the measured "
            "times."
        )
    else:
        verdict = ", and the times may well come from it."
    print_lines(
        f"\nBest: {best.name}{alike and f'; {alike} cannot be told from it'}{verdict}"
    )
    if num_times > MAX_TIMES:
        print_lines(f"Fitted to {MAX_TIMES} of the {num_times} times, drawn at random.")


def _print_plans(answer: FitAnswer) -> None:
    plans = answer.plans
    laws = list(plans[0].runtime_under)
    problem = answer.best.problem
    assert problem is not None
    unit, name = traces.unit_of(answer.trace, problem)

    def under(law: str) -> Shown:
        def cell(plan: FitPlan) -> str:
            value = plan.runtime_under[law]
            if value is None:
                return "infinite"
            return f"{value / unit:.5g}"

        return f"under\n{law}", cell

    def replayed(plan: FitPlan) -> str:
        runtime, error = plan.replayed_runtime, plan.replayed_error
        if runtime is None or error is None:
            return "–"
        return f"{runtime / unit:.5g} ± {error / unit:.2g}"

    in_steps: list[Shown] = []
    if plans[0].replayed_runtime is not None:
        in_steps = [("in the steps of\nthe trace", replayed)]
    columns = table_of(
        PLANS, plans, runtime_under=[*map(under, laws)], replayed_runtime=in_steps
    )
    output.print_rows(plans, columns, title="\nExpected runtime of each plan")
    print_lines(f"Runtimes are of whole coordinates, in {name}.")
    law = next(law for law in laws if law == MEASURED)
    under_law = [plan.runtime_under[law] for plan in plans[:-1]]
    values = [value for value in under_law if value is not None]
    if len(values) == len(under_law):
        worst = (
            "changes the runtime by at most "
            f"{100 * (max(values) / min(values) - 1):.2g} %"
        )
        print_lines(f"\nUnder {law} the choice of what to plan for {worst}.")
