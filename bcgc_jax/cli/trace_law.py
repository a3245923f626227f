"""Which law stands for a trace: its times as they are where that is quick, else a smooth law."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bcgc_jax.cli.ending import say
from bcgc_jax.laws import Empirical, HazardCurve, JointLaw, Law
from bcgc_jax.measured.curve import hazard_curve
from bcgc_jax.measured.smooth import smooth_empirical
from bcgc_jax.measured.standing_in import StandIn, stand_in
from bcgc_jax.measured.traces import Trace
from bcgc_jax.partitions import cumulative_load
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.closed_form import time_partition

# Operations of the optimum and of partial stragglers up to which atoms are taken: some ten seconds.
_CHEAP = 1e7
# Knots and times of the tail, one after the other, until the difference is this share of what the times leave
# open anyway. A comparison takes seconds where there are many workers, and one is nearly always enough.
_TRIED, _CLOSE = ((100, 20), (50, 20), (50, 50)), 0.25


class _Found(NamedTuple):
    law: HazardCurve
    compared: StandIn


def choose_law(trace: Trace, num_workers: int) -> Law:
    """The law of all times together, and a line on stderr where it is not made of these themselves."""
    if trace.censored.any():
        say("bcgc: some times are censored, so a smooth law stands for all of them")
        return smooth_empirical(trace.seconds, trace.censored)
    atoms, times = trace.law(), trace.seconds.size
    if times * num_workers * (num_workers**2 + times / 6) <= _CHEAP:
        return atoms
    found: list[_Found] = []
    for knots, tail in _TRIED:
        try:
            law = hazard_curve(trace.seconds, knots, num_tail=min(tail, trace.seconds.size // 10))
        except ValueError:
            break
        found.append(_Found(law, compare(law, trace, _plan_of_time(law, num_workers), num_workers)))
        if found[-1].compared.difference <= _CLOSE * found[-1].compared.uncertainty:
            break
    best = min(found, key=lambda one: one.compared.difference, default=None)
    if best is None:  # nothing smooth is near them
        return atoms
    say(
        f"bcgc: a smooth law of {best.law.knots.size} knots stands for {times:,} measured times, which as "
        "atoms would take long"
    )
    return best.law


def _plan_of_time(law: Law, num_workers: int) -> np.ndarray:
    return np.asarray(time_partition(Problem(law, num_workers, 1.0)))


def compare(law: Law, trace: Trace, partition: np.ndarray, num_workers: int) -> StandIn:
    """How far the runtime of a partition is from that of all measured times."""
    load = cumulative_load(jnp.asarray(partition, float))
    return stand_in(law, trace.seconds, trace.step, load, num_workers)


def which_law(law: Law | JointLaw, trace: Trace, partition: list[int] | None) -> list[str]:
    """What stands for the trace, in words, judged at a plan."""
    if isinstance(law, Empirical):
        return [f"Law: the {trace.seconds.size:,} measured times, each an atom."]
    if not isinstance(law, HazardCurve) or partition is None:
        return []
    found = compare(law, trace, np.asarray(partition, float), len(partition))
    text = (
        f"Law: smooth, of {law.knots.size} knots, in place of {trace.seconds.size:,} atoms. The runtime of "
        f"this plan differs by {100 * found.difference:.2g} % from that under all atoms, which the trace "
        f"leaves open to a standard error of {100 * found.uncertainty:.2g} %"
    )
    near = found.difference < found.uncertainty
    return [text + ("." if near else ": that is more, so take fewer --workers and --trace-law atoms.")]
