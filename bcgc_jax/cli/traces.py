"""A trace named on the command line, and the distribution that stands for it."""

import math
import os
from contextlib import suppress
from typing import Any

import click
import numpy as np

from bcgc_jax.balancing.remedies import Limit
from bcgc_jax.cli.columns import ADVICE, values
from bcgc_jax.cli.commands import LAYOUT, FitOptions, Times
from bcgc_jax.cli.describe import num_workers
from bcgc_jax.cli.exit import say
from bcgc_jax.cli.logs import log_name, read_log
from bcgc_jax.cli.output import Row
from bcgc_jax.diagnosis.advice import Advice, Remedy, advise
from bcgc_jax.diagnosis.description import NOTHING, Description, describe
from bcgc_jax.diagnosis.slowness import slowness_in
from bcgc_jax.distributions import Distribution, EmpiricalRows, JointDistribution
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.plan import Plan, partition_plan
from bcgc_jax.plans.simulation import fresh_steps, steps_in_a_row
from bcgc_jax.problem import Problem
from bcgc_jax.traces.choice import distribution_of
from bcgc_jax.traces.intervals import percent
from bcgc_jax.traces.trace import Trace
from bcgc_jax.traces.units import counted
from bcgc_jax.traces.whole_steps import fewer_chunks_in_words, whole_steps


def read(asked: Times) -> Trace | None:
    """Read the cycle times of the trace that was named, if one was.

    They are seconds. Where there are loads they are seconds over load, and a line says
    so.
    """
    if asked.trace is None:
        return None
    trace = read_loads(asked)
    if trace.load is not None:
        say("bcgc: seconds are divided by their loads")
    return trace.per_cycle()


def read_loads(asked: Times | FitOptions) -> Trace:
    """Read the trace as its file has it."""
    assert asked.trace is not None
    columns = {name: getattr(asked, name) for name in LAYOUT}
    return read_log(
        asked.trace, "--step-column, --worker-column, --seconds-column", **columns
    )


def workers_of(asked: Times | FitOptions, trace: Trace, workers: int | None) -> int:
    """Return N: as asked for, or that of the trace."""
    if asked.keep_workers and workers not in (None, trace.num_workers):
        trace_workers = counted(trace.num_workers, "worker")
        raise ValueError(
            f"--keep-workers keeps the steps of {trace_workers}, not {workers}: leave "
            "--workers out"
        )
    if workers is None and trace.num_workers < 2:
        raise ValueError(
            f"{log_name(str(asked.trace))} has one worker only: coding needs the times "
            "of at least two, or give --workers"
        )
    return workers or trace.num_workers


def law_for(
    asked: Times, trace: Trace, workers: int
) -> Distribution | JointDistribution:
    """Return the distribution of all times; with --keep-workers, of whole steps."""
    if asked.keep_workers:
        return EmpiricalRows(trace.rows())
    return distribution_of(
        trace.seconds, workers, trace.censored, kind=asked.trace_distribution
    )


def planned_for(
    asked: Times, law: Any, workers: int | None
) -> tuple[Trace | None, Any, int]:
    """Return the trace, if any, and the law and number of workers to plan for."""
    if (trace := read(asked)) is not None:
        workers = workers_of(asked, trace, workers)
        law = law_for(asked, trace, workers)
    if workers is None:
        raise click.UsageError("give the number of workers with --workers")
    return trace, law, workers


def check_size(
    problem: Problem, alternative: str = "--trace-distribution smooth"
) -> None:
    """Raise ValueError if an exact runtime takes over an hour, or too much memory."""
    operations = iteration_of(problem).evaluation_cost()
    memory = math.inf
    with suppress(AttributeError, OSError, ValueError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    quicker = f"take fewer --workers, or {alternative}"
    # 200 bytes for each N² operations, of which there are 10⁸ a second; an hour is a
    # day of an optimum.
    if (required_bytes := 200 * operations / problem.max_workers**2) > memory:
        raise ValueError(
            f"this takes {required_bytes / 2**30:,.0f} GB of memory, and there are "
            f"{memory / 2**30:,.0f}: {quicker}"
        )
    if operations > 3600 * 1e8:
        raise ValueError(f"this would take more than a day: {quicker}")


def measured_forward(trace: Trace | None) -> float | None:
    """The forward pass as a ratio to the backward pass; None where it was not timed."""
    if trace is None:
        return None
    return trace.forward_ratio


def forward_in_words(asked: Times | FitOptions, trace: Trace) -> list[str]:
    """Say that plans take the forward pass from the trace, where they do."""
    ratio = measured_forward(trace)
    if ratio is None or asked.asks_forward:
        return []
    return [
        f"A forward pass takes {ratio:.3g} of a backward pass by forward_seconds. "
        f"Plans count it, as with --forward {ratio:.3g}."
    ]


def remarks(asked: Times, trace: Trace) -> list[str]:
    """Say where the trace is not what a plan supposes.

    With --keep-workers that is only where nothing can be learnt from it, and the
    causes.
    """
    description = describe(trace, with_tail=False)
    lost = description.slowness
    fewer = fewer_chunks_in_words(whole_steps(trace))
    if lost is not None and lost.alike:
        return [*fewer, *lost.alike_in_words()]
    if not asked.keep_workers:
        said = in_words(description)
        if said == [NOTHING]:
            return fewer
        return [*fewer, *said]
    if lost is None:
        return fewer
    return [*fewer, *lost.causes_in_words()]


def stays_slow(trace: Trace | None) -> bool:
    """Whether workers of the trace stay slow, so that they are known beforehand."""
    lost = None
    if trace is not None:
        lost = slowness_in(trace)
    return lost is not None and lost.unlike_workers


def advice_on(trace: Trace | None) -> Advice | None:
    """What `bcgc advise` says of a log of chunks; None if nothing can be learnt."""
    if trace is None or trace.microbatches is None:
        return None
    lost = slowness_in(trace)
    if lost is None or lost.alike or not lost.recorded:
        return None
    return advise(trace)


def sharing_rows(advice: Advice) -> list[Remedy]:
    return [row for row in advice.rows if row.scheme.asks]


def microbatches_of(trace: Trace | None, advice: Advice) -> Row:
    """What `bcgc advise` says of work sharing, for JSON."""
    rows = [*sharing_rows(advice), advice.row(Limit.name)]
    return {
        "forward_ratio": measured_forward(trace),
        "num_steps": advice.num_steps,
        "step": advice.step,
        "causes": advice.causes,
        "rows": [values(ADVICE, row) for row in rows],
    }


def sharing_in_words(advice: Advice) -> str:
    """What work sharing saves in the chunks that were recorded."""
    saved = ", ".join(
        f"{row.remedy} {percent(row.saved.value)} % ({row.saved.in_percent()} %)"
        for row in sharing_rows(advice)
    )
    steps = f"{advice.num_judged} steps of the trace"
    text = f"Work sharing, replayed in {steps}, saves of the uncoded time: {saved}. "
    if advice.lengths is not None:
        text += f"Lengths of chunks are predicted from {advice.lengths}. "
    limit = advice.row(Limit.name).saved.value
    text += f"No exact scheme saves more than {percent(limit)} %. "
    return f"{text}bcgc advise says more."


def in_words(description: Description) -> list[str]:
    """Its remarks, with the command's name for whole steps."""
    return [
        remark.replace("`EmpiricalRows`", "--keep-workers")
        for remark in description.remarks()
    ]


def in_its_steps(
    trace: Trace, problem: Problem, name: str, plan: Plan, promised: float
) -> list[str]:
    """Say what the steps of the trace make of the `plan` that was made for them.

    Nothing, if its steps are those of other workers.
    """
    runtimes = replay(trace, problem, plan)
    workers = num_workers(problem)
    level_0 = problem.total * (np.arange(workers) == 0)
    uncoded = replay(trace, problem, partition_plan(level_0, workers))
    if not runtimes.size or np.array_equal(runtimes, uncoded):
        return []
    share = 100 * np.mean(uncoded - runtimes) / uncoded.mean()
    error = 100 * error_of(uncoded - runtimes) / uncoded.mean()
    word = "more"
    if share > 0:
        word = "less"
    saved = f"{abs(share):.1f} ± {error:.2g} % {word} time"
    planned = plan.completion is None or plan.completion.bound_of != "storage"
    advice = "."
    if planned:
        advice = "; it was made for these, so expect less of later ones."
    if share < 2 * error:
        advice = "; it is not faster by two standard errors: take uncoded."
    said = [
        f"In the trace's own steps {name} takes {saved} than the uncoded scheme{advice}"
    ]
    said += _in_a_row(trace, problem, plan, uncoded.mean())
    said += later_than_promised(name, promised, runtimes.mean(), error_of(runtimes))
    return said


def _in_a_row(trace: Trace, problem: Problem, plan: Plan, uncoded: float) -> list[str]:
    """Say the same of workers that end a begun pass first, if this takes 2 % more."""
    steps = known_steps(trace, problem)
    runtimes = steps_in_a_row(problem, plan, np.zeros_like(steps), steps)
    if runtimes is None:
        return []
    alone, in_a_row = (times.mean() for times in runtimes)
    if in_a_row < 1.02 * alone:
        return []
    share = 100 * (1 - float(problem.scale) * in_a_row / uncoded)
    word = "more"
    if share > 0:
        word = "less"
    return [
        "If each worker first ends the pass that it has begun, it takes "
        f"{abs(share):.1f} % {word} time than uncoded there."
    ]


def known_steps(trace: Trace | None, problem: Problem) -> np.ndarray:
    """Return steps with all times known, `[S, N]`; none that other workers ran."""
    workers = num_workers(problem)
    if trace is None or trace.load is not None or trace.num_workers != workers:
        return np.zeros((0, workers))
    return whole_steps(trace).times


def replay(trace: Trace, problem: Problem, plan: Plan) -> np.ndarray:
    """What a plan takes in each whole step; nothing where there are less than two."""
    steps = known_steps(trace, problem)
    if len(steps) < 2:
        return np.zeros(0)
    return fresh_steps(problem, plan, steps)


def error_of(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def later_than_promised(
    plan: str, promised: float, runtime: float, error: float
) -> list[str]:
    if runtime - promised < 2 * error:
        return []
    share = 100 * (runtime / promised - 1)
    return [
        f"In the steps of the trace {plan} takes {share:.2g} % longer than expected: "
        "it supposes independent workers. --keep-workers plans on whole steps."
    ]


def unit_of(trace: Trace | None, problem: Problem) -> tuple[float, str]:
    """Return the unit of printed runtimes and its name; under a trace, seconds of a
    recorded step.

    A recorded worker had its share of the step's data, with its forward pass and what
    it carries back.
    """
    if trace is None:
        return 1.0, "the cycle time's unit"
    if trace.of_cycles:
        return 1.0, "seconds"
    recorded = trace.num_workers
    workers = num_workers(problem)
    cycles = float(problem.num_samples * problem.cycles * problem.pass_load / recorded)
    name = (
        "seconds of a recorded step. JSON and CSV have another unit: divide their "
        "runtimes by "
    )
    name += f"{cycles:g} to get these seconds"
    if workers != recorded:
        times = f"{recorded / workers:.3g} times"
        name += f". The trace has {counted(recorded, 'worker')}. Here "
        name += f"{workers} share{'s' if workers == 1 else ''} the same data: each has "
        name += f"{times} as much, and is supposed to take {times} as long"
    return cycles, name


def which_law(law: Distribution | JointDistribution, trace: Trace) -> list[str]:
    numbers = law.summary()
    times = counted(trace.seconds.size, "measured time")
    if "measured_times" in numbers:
        return [f"Distribution: the {times} as they are."]
    if "knots" in numbers:
        return [f"Distribution: smooth, {numbers['knots']} knots in place of {times}."]
    return []
