"""A trace that was named on the command line, and the law that stands for its times."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from bcgc_jax.cli.exit import say
from bcgc_jax.cli.output import access
from bcgc_jax.cli.question import TraceOptions
from bcgc_jax.distributions import Distribution, EmpiricalRows, JointDistribution
from bcgc_jax.measured.choice import law_of
from bcgc_jax.measured.description import NOTHING, describe
from bcgc_jax.measured.traces import ColumnError, Trace, load_trace
from bcgc_jax.plans.runtime import block_runtime
from bcgc_jax.problem import Problem

STANDARD_INPUT = "-"


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
    """As the file has it; ValueError for one that cannot be read or is no trace."""
    try:
        with access(trace_name(asked)):
            source = sys.stdin.buffer if asked.path == STANDARD_INPUT else str(asked.path)
            return load_trace(source, **vars(asked.columns), progress=progress)
    except ColumnError as error:
        raise ValueError(
            f"{error}. Here: --step-column, --worker-column, --seconds-column, --load-column, --layout wide"
        ) from None


def trace_name(asked: TraceOptions) -> str:
    """What a person calls the file."""
    return "standard input" if asked.path == STANDARD_INPUT else str(asked.path)


def workers_of(asked: TraceOptions, trace: Trace, workers: int | None, *, replayed: bool = False) -> int:
    """How many there are to be: those asked for, or those of the trace, which a replay needs."""
    if asked.keep_workers and workers not in (None, trace.num_workers):
        raise ValueError(
            f"--keep-workers makes a law of {trace.num_workers} workers, not of {workers}: drop --workers"
        )
    if replayed and workers not in (None, trace.num_workers):
        raise ValueError(f"the trace has {trace.num_workers} workers, not {workers}: leave --workers out")
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
    said = found.remarks()
    if asked.keep_workers:
        return said[:1] if found.alike else []
    if said == [NOTHING]:
        return []
    return [*map(with_options, said), "bcgc fit says more; --keep-workers plans on whole steps."]


def late(trace: Trace, problem: Problem, plan: dict[str, Any]) -> list[str]:
    """What the steps of the trace take beyond what the `plan` expects of independent workers."""
    taken, error = replayed(whole_steps(trace), problem, np.asarray(plan["partition"], float))
    if taken is None or error is None:
        return []
    return later_than_promised(plan["method"], plan["partition_runtime"], taken, error)


def replayed(
    steps: np.ndarray, problem: Problem, counts: np.ndarray
) -> tuple[float, float] | tuple[None, None]:
    """What these coordinates at each level take in whole steps, `[S, N]`, on average, and its error."""
    if len(steps) < 2 or steps.shape[1] != len(counts):
        return None, None
    samples, cycles = float(np.asarray(problem.num_samples)), float(np.asarray(problem.cycles))
    taken = np.asarray(block_runtime(counts, steps, num_samples=samples, cycles=cycles))
    return float(taken.mean()), float(taken.std(ddof=1) / np.sqrt(len(taken)))


def later_than_promised(plan: str, promised: float, taken: float, error: float) -> list[str]:
    """In words, where it is more than chance."""
    if taken - promised < 2 * error:
        return []
    return [
        f"In the steps of the trace {plan} takes {100 * (taken / promised - 1):.2g} % longer than expected: "
        "the workers of a step are not as independent as it supposes. --keep-workers plans on whole steps."
    ]


def whole_steps(trace: Trace) -> np.ndarray:
    """The steps of which every worker's time is known, `[S, N]`."""
    times = trace.table()
    return times[np.isfinite(times).all(axis=1)]


def with_options(remark: str) -> str:
    """A remark of the library, with the command's name for whole steps."""
    return remark.replace("`EmpiricalRows`", "--keep-workers")


def cycles_of_a_step(problem: Problem) -> str:
    """How runtimes, of cycles that take the times of a trace, compare with its steps."""
    cycles = float(problem.scale * problem.total)
    return (
        f"Each cycle takes a time of the trace, and a worker has M b L / N = {cycles:g} of them without "
        f"redundancy: divided by {cycles:g}, runtimes are in seconds of a step as it was recorded."
    )


def unit_of(trace: Trace | None) -> str:
    """Of runtimes of cycles that take the times of a trace, or that a law was typed for."""
    if trace is None:
        return "the cycle time's unit"
    return "seconds" if trace.of_cycles else "seconds times cycles"


def which_law(law: Distribution | JointDistribution, trace: Trace) -> list[str]:
    """What stands for the trace, in words."""
    known = law.summary()
    if "measured_times" in known:
        return [f"Distribution: the {trace.seconds.size:,} measured times, each an atom."]
    if "knots" in known:
        return [
            f"Distribution: smooth, {known['knots']} knots in place of {trace.seconds.size:,} measured times."
        ]
    return []
