"""What a person reads of `bcgc solve` besides rows: computed for the table alone."""

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax.cli import traces
from bcgc_jax.cli.commands import SolveOptions
from bcgc_jax.cli.solve_rows import SolveAnswer, Solved, fastest, fastest_plan
from bcgc_jax.diagnosis.advice import Advice
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.loads import partition_of_units
from bcgc_jax.plans.plan import partition_plan
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.compare import largest_setup
from bcgc_jax.solvers.limit import enough_subsets
from bcgc_jax.traces.resampling import bootstrap_interval
from bcgc_jax.traces.trace import Trace


def remarks(
    question: SolveOptions,
    trace: Trace | None,
    advice: Advice | None,
    answer: SolveAnswer,
) -> list[str]:
    """What is to be said of the trace that the problem was made from."""
    if trace is None:
        return []
    said = [
        *traces.which_law(answer.problem.cycle_time, trace),
        *traces.forward_in_words(question, trace),
        *traces.remarks(question, trace),
    ]
    if advice is not None:
        said.append(traces.sharing_in_words(advice))
        if advice.of_data:
            return said
    if answer.problem.plain and not question.unit_costs and not question.keep_workers:
        exact = [row for row in answer.rows if row.exact]
        coded = [row for row in exact if row.partition]
        schedules = [row for row in exact if row.schedule]
        # `advice` has replayed it in a log of chunks.
        shared = [row for row in exact if row.shares_work and advice is None]
        for row in [*shared, *schedules[:1], *coded[:1]]:
            plan = row.solution.plan
            if row.partition:
                plan = partition_plan(
                    np.array(row.partition, float), len(row.partition)
                )
            assert plan is not None
            said += traces.in_its_steps(
                trace, answer.problem, row.method, plan, row.runtime
            )
    return said


def for_a_person(
    question: SolveOptions,
    judged: Problem,
    answer: SolveAnswer,
    baselines: list[Solved],
    trace: Trace | None,
) -> SolveAnswer:
    """Add the table's remarks; the best baseline asks nobody and loses no samples."""
    silent = [row for row in baselines if not row.round_trips]
    baseline = fastest([row for row in silent if row.exact])
    # Where no baseline is possible, as for an infinite mean, a single block is not
    # either.
    setup = None
    if baseline is not None:
        setup = _largest_setup(judged, answer.rows)
    enough = None
    shared = any(row.shares_work for row in answer.rows)
    stays_slow = shared and traces.stays_slow(trace)
    if shared and not stays_slow and iteration_of(answer.problem).alike:
        enough = enough_subsets(judged)
    interval = _interval(question, answer.problem, answer.rows)
    answer = answer._replace(stays_slow=stays_slow, enough=enough)
    return answer._replace(baseline=baseline, interval=interval, setup=setup)


def _interval(
    question: SolveOptions, problem: Problem, rows: list[Solved]
) -> tuple[float, float] | None:
    """What the steps of a trace leave open of the best plan."""
    if iteration_of(problem).rows is None or rows[0].partition is None:
        return None
    counts = partition_of_units(problem, jnp.asarray(rows[0].partition))
    low, high = bootstrap_interval(jax.random.key(question.seed), problem, counts)
    return float(low), float(high)


def _largest_setup(problem: Problem, rows: list[Solved]) -> float | None:
    """Return `largest_setup` of the fastest plan without setup, where it is quick."""
    best = fastest_plan(rows)
    # A single block pays for start-ups, sending and setup too. Ten more expectations of
    # a second are felt.
    if (
        best is None
        or best.partition is None
        or not problem.bare
        or iteration_of(problem).evaluation_cost() > 1e8
    ):
        return None
    counts = np.pad(best.partition, (0, problem.max_workers - len(best.partition)))
    return largest_setup(problem, partition_of_units(problem, jnp.asarray(counts)))
