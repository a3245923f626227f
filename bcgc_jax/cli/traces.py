"""A trace that was named on the command line, and the law that stands for its times."""

import sys
from collections.abc import Callable

import click
import numpy as np

from bcgc_jax.cli.commands import TraceOptions
from bcgc_jax.cli.exit import say
from bcgc_jax.cli.output import Row
from bcgc_jax.distributions import Distribution, EmpiricalRows, JointDistribution
from bcgc_jax.measured.choice import law_of
from bcgc_jax.measured.description import NOTHING, Description, describe
from bcgc_jax.measured.traces import ColumnError, Trace, load_trace
from bcgc_jax.plans.runtime import block_runtime
from bcgc_jax.problem import Problem


def read(asked: TraceOptions) -> Trace | None:
    """Cycle times, if a trace was named: seconds, or seconds over load where there are loads, and says so."""
    if asked.path is None:
        return None
    trace = read_loads(asked)
    if trace.load is not None:
        say(
            "bcgc: seconds are divided by their loads, as if all time grew with them; bcgc fit tells a "
            "start-up apart"
        )
    return trace.per_cycle()


def read_loads(asked: TraceOptions, progress: Callable[[float], None] | None = None) -> Trace:
    """As the file has it; ValueError for one that cannot be read, UsageError for one without the columns."""
    try:
        source = sys.stdin.buffer if asked.path == "-" else str(asked.path)
        return load_trace(source, **vars(asked.columns), progress=progress)
    except ColumnError as error:
        text = str(error).replace(
            "step=, worker=, seconds=", "--step-column, --worker-column, --seconds-column"
        )
        # No ValueError: columns such as num_workers are to be told as the file has them.
        raise click.UsageError(text.replace('layout="wide"', "--layout wide")) from None


def trace_name(asked: TraceOptions) -> str:
    return "standard input" if asked.path == "-" else str(asked.path)


def workers_of(asked: TraceOptions, trace: Trace, workers: int | None, *, replayed: bool = False) -> int:
    """How many there are to be: those asked for, or those of the trace, which a replay needs."""
    if (asked.keep_workers or replayed) and workers not in (None, trace.num_workers):
        why = "--keep-workers keeps the steps of" if asked.keep_workers else "the trace has"
        raise ValueError(f"{why} {trace.num_workers} workers, not {workers}: leave --workers out")
    if workers is None and trace.num_workers < 2:
        raise ValueError(
            f"{trace_name(asked)} has one worker only: coding needs the times of at least two"
            + ("" if replayed else ", or give --workers")
        )
    return workers or trace.num_workers


def law_for(asked: TraceOptions, trace: Trace, workers: int) -> Distribution | JointDistribution:
    """That of all times together, or with --keep-workers of whole steps."""
    if asked.keep_workers:
        return EmpiricalRows(trace.rows())
    try:
        return law_of(trace.seconds, workers, trace.censored, kind=asked.kind)
    except ValueError as error:
        raise ValueError(str(error).replace("a smooth law", "--trace-law smooth")) from None


def remarks(asked: TraceOptions, trace: Trace) -> list[str]:
    """Where it is not what a plan supposes; of whole steps, only where nothing can be learnt from it."""
    found = describe(trace, with_tail=False)
    said = in_words(found)
    if asked.keep_workers:
        return said[:1] if found.alike else []
    return [] if said == [NOTHING] else [*said, "bcgc fit says more; --keep-workers plans on whole steps."]


def in_words(description: Description) -> list[str]:
    """Its remarks, with the command's name for whole steps."""
    return [remark.replace("`EmpiricalRows`", "--keep-workers") for remark in description.remarks()]


def in_its_steps(trace: Trace, problem: Problem, plan: Row) -> list[str]:
    """What the steps of the trace say of the `plan` that was made for them; nothing if they are of others."""
    counts = np.asarray(plan["partition"], float)
    taken = replay(trace, problem, counts)
    if not taken.size or not counts[1:].any():
        return []
    uncoded = replay(trace, problem, counts.sum() * (np.arange(counts.size) == 0))
    share, error = (100 * f(uncoded - taken) / uncoded.mean() for f in (np.mean, error_of))
    more = "less" if share > 0 else "more"
    advice = "it was made for these, so expect less of later ones."
    if share < 2 * error:
        advice = "they do not show that a code is faster: take uncoded."
    return [
        f"In the trace's own steps {plan['method']} takes {abs(share):.1f} ± {error:.2g} % {more} time than "
        f"the uncoded scheme; {advice}",
        *later_than_promised(plan["method"], plan["partition_runtime"], taken.mean(), error_of(taken)),
    ]


def replay(trace: Trace, problem: Problem, counts: np.ndarray) -> np.ndarray:
    """What these coordinates at each level take in each whole step; nothing where other workers took them."""
    times = trace.table()
    steps = times[np.isfinite(times).all(axis=1)]
    if len(steps) < 2 or steps.shape[1] != len(counts):
        return np.zeros(0)
    samples, cycles = float(np.asarray(problem.num_samples)), float(np.asarray(problem.cycles))
    return np.asarray(block_runtime(counts, steps, num_samples=samples, cycles=cycles))


def error_of(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def later_than_promised(plan: str, promised: float, taken: float, error: float) -> list[str]:
    if taken - promised < 2 * error:
        return []
    return [
        f"In the steps of the trace {plan} takes {100 * (taken / promised - 1):.2g} % longer than expected: "
        "it supposes independent workers. --keep-workers plans on whole steps."
    ]


def unit_of(trace: Trace | None, problem: Problem) -> tuple[float, str]:
    """What runtimes are printed in. Under a trace, whose times a cycle takes, a recorded step's seconds."""
    if trace is None or trace.of_cycles:
        return 1.0, "the cycle time's unit" if trace is None else "seconds"
    cycles = float(problem.scale * problem.total)
    return cycles, f"seconds of a recorded step (JSON and CSV: M b L / N = {cycles:g} times as long)"


def which_law(law: Distribution | JointDistribution, trace: Trace) -> list[str]:
    known = law.summary()
    if "measured_times" in known:
        return [f"Distribution: the {trace.seconds.size:,} measured times as they are."]
    if "knots" in known:
        return [
            f"Distribution: smooth, {known['knots']} knots in place of {trace.seconds.size:,} measured times."
        ]
    return []
