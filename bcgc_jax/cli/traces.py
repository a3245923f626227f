"""A trace that was named on the command line, and the law that stands for its times."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from bcgc_jax.cli.ending import say
from bcgc_jax.cli.names import TRACE_LAWS
from bcgc_jax.cli.output import access
from bcgc_jax.cli.trace_law import choose_law
from bcgc_jax.laws import Empirical, JointLaw, Law, Rows
from bcgc_jax.measured.description import NOTHING, describe
from bcgc_jax.measured.smooth import smooth_empirical
from bcgc_jax.measured.traces import ColumnError, Trace, load_trace
from bcgc_jax.problem import Problem

STANDARD_INPUT = "-"
# An exact expectation under a law of K atoms takes some K N³ operations: this many are about ten seconds.
_MOST_OPERATIONS = 5e9
# Below this, atoms that stand for several times each say too little about them.
_FEWEST_ATOMS = 100


@dataclasses.dataclass(frozen=True)
class TraceFile:
    """A file of measured times, the keywords of `load_trace` for it, and which law shall stand for them."""

    path: str
    columns: dict[str, Any]
    kind: str = TRACE_LAWS[0]
    keep_workers: bool = False

    def read(self) -> Trace:
        """Cycle times: seconds, or where there are loads seconds over load, which is said."""
        trace = self.read_loads()
        if trace.load is not None:
            say(
                "bcgc: seconds are divided by their loads, as if all time grew with them; bcgc fit tells a "
                "start-up apart"
            )
        return trace.per_cycle()

    def read_loads(self, progress: Callable[[float], None] | None = None) -> Trace:
        """As the file has it; ValueError for one that cannot be read or is no trace."""
        try:
            with access(self.name):
                source = sys.stdin.buffer if self.path == STANDARD_INPUT else self.path
                return load_trace(source, **self.columns, progress=progress)
        except ColumnError as error:
            raise ValueError(
                f"{error}. Here: --step-column, --worker-column, --seconds-column, --load-column, --layout "
                "wide"
            ) from None

    @property
    def name(self) -> str:
        """What a person calls it."""
        return "standard input" if self.path == STANDARD_INPUT else self.path

    def num_workers(self, trace: Trace, asked: int | None, *, replayed: bool = False) -> int:
        """How many there are to be: those `asked` for, or those of the trace, which a replay needs."""
        if self.keep_workers and asked not in (None, trace.num_workers):
            raise ValueError(
                f"--keep-workers makes a law of {trace.num_workers} workers, not of {asked}: drop --workers"
            )
        if replayed and asked not in (None, trace.num_workers):
            raise ValueError(f"the trace has {trace.num_workers} workers, not {asked}: leave --workers out")
        if asked is None and trace.num_workers < 2:
            raise ValueError(
                f"{self.name} has one worker only: coding needs the times of at least two"
                + ("" if replayed else ", or give --workers")
            )
        return asked or trace.num_workers

    def law(self, trace: Trace, num_workers: int) -> Law | JointLaw:
        """That of all times together, or with `keep_workers` of whole steps."""
        if self.keep_workers:
            return Rows(trace.rows())
        if self.kind == "auto":
            return choose_law(trace, num_workers)
        return law_of_trace(trace, self.kind, num_workers)

    def remarks(self, trace: Trace) -> list[str]:
        """Where it is not what a plan supposes; of whole steps, only where nothing can be learnt from it."""
        found = describe(trace, with_tail=False)
        said = found.remarks()
        if self.keep_workers:
            return said[:1] if found.alike else []
        if said == [NOTHING]:
            return []
        return [*map(with_options, said), "bcgc fit says more; --keep-workers plans on whole steps."]


def late(trace: Trace, problem: Problem, plan: dict[str, Any]) -> list[str]:
    """What the steps of the trace take beyond what the `plan` expects of independent workers."""
    times, counts = whole_steps(trace), np.asarray(plan["partition"], float)
    if times.shape[1] != counts.size or len(times) < 2:
        return []
    load = np.cumsum(counts * np.arange(1, counts.size + 1))
    taken = float(problem.scale) * np.max(-np.sort(-times, axis=1) * load, axis=1)
    error = taken.std(ddof=1) / np.sqrt(len(taken))
    return later_than_promised(plan["method"], plan["partition_runtime"], float(taken.mean()), float(error))


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
    return remark.replace("`Rows`", "--keep-workers")


def cycles_of_a_step(problem: Problem) -> str:
    """How runtimes, of cycles that take the times of a trace, compare with its steps."""
    cycles = float(problem.scale * problem.total)
    return (
        f"Each cycle takes a time of the trace, and a worker has M b L / N = {cycles:g} of them without "
        f"redundancy: divided by {cycles:g}, runtimes are in steps as they were recorded."
    )


def law_of_trace(trace: Trace, kind: str, num_workers: int, *, num_evaluations: int = 1) -> Law:
    """The law of all measured times together: each an atom, or smooth, perhaps with a fitted tail.

    Too many atoms for `num_workers` are refused. Where `num_evaluations` are ahead that need no more than
    much the same law, neighbours become one atom, as many as these have the time of one for.
    """
    if kind != "atoms":
        return smooth_empirical(trace.seconds, trace.censored, pareto_tail=kind == "pareto-tail")
    if trace.censored.any():
        raise ValueError(
            f"{np.count_nonzero(trace.censored)} of {trace.censored.size} times are censored, and an atom "
            "needs a whole time: take --trace-law smooth"
        )
    most = int(_MOST_OPERATIONS / num_evaluations / num_workers**3)
    if trace.seconds.size <= most:
        return trace.law()
    if num_evaluations > 1 and most >= _FEWEST_ATOMS:
        return Empirical(_means_of_neighbours(trace.seconds, most))
    whole = "--keep-workers or " if num_workers == trace.num_workers else ""
    raise ValueError(
        f"{trace.seconds.size} measured times are too many atoms for {num_workers} workers: "
        f"take {whole}--trace-law smooth, or see bcgc fit"
    )


def _means_of_neighbours(times: np.ndarray, count: int) -> np.ndarray:
    """`count` atoms in place of more `times`: equal shares of the integral of the quantile function."""
    size = times.size
    integral = np.interp(
        np.linspace(0, 1, count + 1), np.linspace(0, 1, size + 1), np.cumsum(np.r_[0, np.sort(times)])
    )
    return np.diff(integral) * count / size
