"""What is refused, as the machine has no memory or no day for it, and the line that tells of what takes long.

Seconds are right to an order of magnitude, on one core of a small server: they tell a day from a minute, and
nobody is promised any. Compiling comes on top.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcgc_jax.cli.ending import say
from bcgc_jax.crossing import MANY
from bcgc_jax.laws import Atomic, JointLaw, Law, Rows
from bcgc_jax.laws.base import Kinked
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.methods import (
    Alternating,
    Credit,
    Cyclic,
    Deadline,
    Method,
    Optimal,
    Subgradient,
    TandonPartial,
)
from bcgc_jax.solvers.optimum import FEW_UNITS
from bcgc_jax.solvers.sample_average import NUM_FRESH_DRAWS
from bcgc_jax.solvers.schedules import Scheduled
from bcgc_jax.solvers.schemes import NUM_DRAWS as SCHEME_DRAWS
from bcgc_jax.solvers.schemes import Scheme

_LONG, _DAY = 60.0, 86_400.0
_OPERATION = 1e-8  # seconds


class Cost(NamedTuple):
    """What something takes; two of them `after` each other take the time of both and the memory of one."""

    seconds: float = 0.0
    bytes: float = 0.0

    def after(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, max(self.bytes, other.bytes))


def _evaluation(problem: Problem, n: float) -> Cost:
    """One exact expected runtime and its slope."""
    law = problem.cycle_time
    if isinstance(law, JointLaw):
        draws = len(np.asarray(law.times)) if isinstance(law, Rows) else NUM_FRESH_DRAWS
        return Cost(_OPERATION * draws * n, 40 * draws * n)
    operations = 0.0 if problem.plain else problem.iteration.evaluation_cost()
    if atoms := _atoms(law):
        return Cost(_OPERATION * (atoms * n**3 / 2 + operations), 60 * n * n + 200 * atoms * n)
    pieces = law.pieces()
    nodes = 129 + (450 * int(np.size(pieces.times)) if isinstance(pieces, Kinked) else 0)
    pairs = n * (n if n <= MANY else 200)
    return Cost(_OPERATION * (nodes * pairs + operations), 60 * pairs + 200 * nodes * n)


def _atoms(law: Law | JointLaw) -> int:
    pieces = None if isinstance(law, JointLaw) else law.pieces()
    return int(np.size(pieces.times)) if isinstance(pieces, Atomic) else 0


def cost_of(problem: Problem, method: Method | Scheme) -> Cost:
    """`solve` for one concrete problem."""
    n = float(np.asarray(problem.num_workers))
    one, atoms = _evaluation(problem, n), _atoms(problem.cycle_time)
    match method:
        case Cyclic() | Scheme(name="limit"):
            return Cost()
        case Scheduled():
            blocks = method.num_blocks if isinstance(method, Alternating) else 1
            return Cost((2e-2 if isinstance(method, Credit) else 2e-4 * blocks) * n**2)
        case Scheme(gives="runtime"):
            return Cost(10 * _OPERATION * SCHEME_DRAWS * n)
        case Optimal():
            return _search(problem, one).after(one)
        case Deadline():
            return Cost(8e-4 * n**2).after(one)
        case Subgradient() as method:
            return Cost(3e-5 * method.batch_size * n).after(one)
        case TandonPartial() if atoms:
            return Cost(16 * _OPERATION * atoms**2 * n, 50 * atoms**2 * n)
    return one


def _search(problem: Problem, one: Cost) -> Cost:
    """The optimum alone: the evaluations that its search takes the time of."""
    n = float(np.asarray(problem.num_workers))
    times = 200.0 if _atoms(problem.cycle_time) or not problem.convex else 20.0
    if problem.has_setup:
        times += 12 * n**2
    if problem.send_time is not None:
        times += 6 * n
    if float(np.asarray(problem.num_coordinates)) <= FEW_UNITS:
        times += n**2 / 2
    found = Cost(times * one.seconds, one.bytes)
    if isinstance(problem.cycle_time, JointLaw):  # a linear program
        rows = one.bytes / (40 * n)
        found = found.after(Cost(_OPERATION * (3 * rows * n**2 + 2 * n**3)))
    return found


def cost_of_all(problem: Problem, methods: Iterable[Method | Scheme]) -> tuple[Cost, str]:
    """What all `methods` take together, and the name of the one that takes most of the time."""
    total, slowest, name = Cost(), -1.0, ""
    for method in methods:
        cost = cost_of(problem, method)
        total = total.after(cost)
        if cost.seconds > slowest:
            slowest, name = cost.seconds, method.name
    return total, name


def announce(cost: Cost, remark: str = "") -> None:
    """One line before what takes long starts; ValueError for what takes more than a day or the memory."""
    memory, more = _memory(), f"; {remark}" if remark else ""
    if memory and cost.bytes > memory:
        raise ValueError(
            f"this takes about {_size(cost.bytes)} of memory, and the machine has {_size(memory)}{more}"
        )
    if cost.seconds > _DAY:
        raise ValueError(f"this would take more than a day{more}")
    if cost.seconds > _LONG:
        say(f"bcgc: this takes long{more}")


def _memory() -> float:
    """Bytes that this process may have, 0 where nobody says."""
    found = []
    with suppress(AttributeError, OSError, ValueError):
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    with suppress(OSError, ValueError):  # of a container; "max" is no number
        found.append(float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, default=0.0)


def _size(number: float) -> str:
    return f"{number / 2**30:.2g} GB" if number < 99 * 2**30 else f"{number / 2**30:,.0f} GB"
