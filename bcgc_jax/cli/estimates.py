"""What a command will take, in seconds and bytes, said before it starts; and what it refuses.

The constants were measured in single runs of `solve`, on one core of a two-core server, float64, N from 10 to
5000, laws of all kinds, 100 to 1000 atoms. Estimates are right within a factor of three, on such a machine;
compiling comes on top, some seconds.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcgc_jax.cli.ending import say
from bcgc_jax.crossing import MANY
from bcgc_jax.laws import Atomic, JointLaw, Law, Rows, Smooth, Unlike
from bcgc_jax.laws.base import Kinked
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.many_workers import is_rough
from bcgc_jax.solvers.methods import (
    LIMIT,
    Alternating,
    Credit,
    Cyclic,
    Deadline,
    Method,
    Optimal,
    Scheduled,
    Subgradient,
    Tandon,
    TandonPartial,
)
from bcgc_jax.solvers.sample_average import NUM_DRAWS, NUM_FRESH_DRAWS
from bcgc_jax.solvers.schemes import NUM_DRAWS as SCHEME_DRAWS
from bcgc_jax.solvers.schemes import Scheme
from bcgc_jax.solvers.solve import DENSE, FEW_UNITS

_LONG = 10.0  # seconds that nobody needs to be told about
# Of the linear program of whole steps: its steps, and what one takes for each S N² and N³.
_ROWS_STEPS, _ROWS_EACH, _ROWS_SYSTEM = 100, 3e-10, 2e-10
_CUTS = 1.8e-5  # cutting planes, N^2.6
# Seconds of a node's evaluation for each N², of few workers and of some; of many, for each of them and N^1.5.
_A_PAIR, _A_PAIR_OF_SOME, _SOME = 2e-8, 8e-9, 150
_A_WORKER, _A_WINDOW = 1e-6, 1e-8
# Of many workers: what a single level takes of an evaluation, and the optimum of smooth steps in evaluations.
_A_LEVEL, _SMOOTH_STEPS = 1 / 40, 10
# Of subsets in turn, seconds for each worker, and each that it stores: of so many workers, and hardly more of
# more.
_A_CHAIN, _A_SUBSET, _CHAINED = 5e-4, 2e-5, 1024
_NODES = 129  # of the quadrature for a smooth law
# Of workers that start up and send: seconds of an operation; numbers at a time; evaluations that all local
# searches take the time of, 65 to 360 from 8 workers on.
_SECONDS, _PIECE, _SEARCHES, _SIDE_BY_SIDE = 3e-9, 2**21, 110, 6


class Cost(NamedTuple):
    """What something takes; two of them `after` each other take the time of both and the memory of one."""

    seconds: float = 0.0
    bytes: float = 0.0

    def after(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, max(self.bytes, other.bytes))


def evaluation(law: Law | JointLaw, num_workers: int) -> Cost:
    """One exact expected runtime and its slope."""
    n = float(num_workers)
    if isinstance(law, JointLaw):
        draws = len(np.asarray(law.times)) if isinstance(law, Rows) else NUM_FRESH_DRAWS
        return Cost(2e-8 * draws * n, 40 * draws * n)
    atoms = _atoms(law)
    if atoms:
        return Cost(4.5e-9 * (atoms + 2) * n**3, 60 * n * n + 200 * atoms * n)
    nodes = _nodes(law)
    if n > MANY:
        return Cost(nodes * n * (_A_WORKER + _A_WINDOW * n**0.5), 200 * nodes * n)
    pair = _A_PAIR if n <= _SOME else _A_PAIR_OF_SOME
    return Cost(pair * nodes * n**2, 60 * n * n + 200 * nodes * n)


def _atoms(law: Law) -> int:
    pieces = law.pieces()
    return int(np.size(pieces.times)) if isinstance(pieces, Atomic) else 0


def _nodes(law: Law) -> int:
    """Of the quadrature: each kink of the law has its own panels."""
    pieces = law.pieces()
    return _NODES + (450 * int(np.size(pieces.times)) if isinstance(pieces, Kinked) else 0)


def _delivery(problem: Problem, one: Cost) -> Cost:
    """The same of workers that start up and send."""
    if not problem.delivers or isinstance(problem.cycle_time, JointLaw):
        return one
    n, random = float(problem.max_workers), not problem.convex
    # Where sending overlaps computing, a level looks at all before it; a constant start-up smooths no kink.
    more = 1.0 if not problem.overlap else 1 + n / 8 if random else n**2
    operations = problem.delivery.evaluation_cost() * more
    together = (_SIDE_BY_SIDE if random else 1) * min(_PIECE, operations)
    return one.after(Cost(_SECONDS * operations, 80 * together))


def cost_of(problem: Problem, method: Method | Scheme) -> Cost:
    """`solve` for one concrete problem, the whole numbers included."""
    law, n = problem.cycle_time, float(np.asarray(problem.num_workers))
    one = _delivery(problem, evaluation(law, int(n)))
    match method:
        case Optimal():
            found = _search(problem, one)
        case Deadline():
            smooth = not isinstance(law, JointLaw) and not _atoms(law)
            found = Cost((2e-4 if smooth else 8e-4) * n**2).after(one)
        case Subgradient() as method:
            found = Cost(3e-5 * method.batch_size * n + 20 * one.seconds, one.bytes)
        case TandonPartial():
            atoms = 0 if isinstance(law, JointLaw) else _atoms(law)
            pairs = float(atoms) ** 2 * n
            return Cost(1.6e-7 * pairs, 50 * pairs) if atoms else Cost(one.seconds / 5, one.bytes)
        case Scheme(name=name) if name == LIMIT:
            return Cost()
        case Cyclic(stored=depth):
            return Cost((_A_CHAIN + _A_SUBSET * depth) * min(n, _CHAINED))
        case Scheduled():
            return Cost(_task(method) * n**2)
        case Scheme(gives="runtime"):
            return Cost(1e-7 * SCHEME_DRAWS * n)
        case Tandon() | Scheme(name="uncoded" | "single_block") if n > MANY:
            found = Cost(_A_LEVEL * one.seconds, one.bytes)
            return found.after(found)
        case _:
            found = one
    return found.after(one)  # of the whole numbers


def _task(method: Scheduled) -> float:
    """Seconds for each pair of a worker and a subset, by the draws and blocks of the method."""
    match method:
        case Credit():
            return 2e-2
        case Alternating(num_blocks=blocks):
            return 2e-4 * blocks
    return 2e-4


def _search(problem: Problem, one: Cost) -> Cost:
    """The optimum alone."""
    law, n = problem.cycle_time, float(np.asarray(problem.num_workers))
    more = 0.0
    if problem.has_setup and problem.convex:  # with a link by cutting planes
        more += 12 * n**2 * (1 if problem.send_time is None else n)
    if float(np.asarray(problem.num_coordinates)) <= FEW_UNITS:
        more += n**2 / 2
    if not problem.convex:
        levels = 12 * n**2 * evaluation(law, int(n)).seconds if problem.has_setup else 0.0
        return Cost((_SEARCHES + more) * one.seconds + levels, one.bytes)
    if isinstance(law, JointLaw):
        draws = NUM_DRAWS if isinstance(law, Unlike) else 0
        rows = len(np.asarray(law.times)) if isinstance(law, Rows) else NUM_DRAWS
        program = _ROWS_STEPS * (_ROWS_EACH * rows * n**2 + _ROWS_SYSTEM * n**3)
        return Cost(program + more * one.seconds, one.bytes + 40 * draws * n)
    if _atoms(law):
        return Cost((200 + more) * one.seconds, one.bytes)
    if problem.send_time is not None:
        return Cost(_CUTS * n**2.6 + (6 * n + more) * one.seconds, one.bytes)
    if n > MANY and not problem.has_setup and not (n <= DENSE and is_rough(law)):
        return Cost((_SMOOTH_STEPS + more) * one.seconds, one.bytes)
    slower = _nodes(law) / _NODES * (1 if isinstance(law.pieces(), Smooth) else 1 + n / 50)
    return Cost(9e-7 * slower * n**2.5 + more * one.seconds, one.bytes + 260 * n * n)


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
    """Say what is long or large before it starts; ValueError for what the machine has no memory for."""
    memory = _memory()
    if memory and cost.bytes > memory:
        raise ValueError(
            f"this takes about {_size(cost.bytes)} of memory, and the machine has {_size(memory)}"
            + (f": {remark}" if remark else "")
        )
    told = [f"about {duration(cost.seconds)}"] * (cost.seconds > _LONG)
    told += [f"about {_size(cost.bytes)} of memory"] * bool(memory and cost.bytes > memory / 4)
    if told:
        say(f"bcgc: this takes {' and '.join(told)}" + (f"; {remark}" if remark else ""))


def _memory() -> float:
    """Bytes that this process may have, 0 where nobody says."""
    found = []
    with suppress(AttributeError, OSError, ValueError):
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    with suppress(OSError, ValueError):  # of a container; "max" is no number
        found.append(float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, default=0.0)


def duration(seconds: float) -> str:
    """One digit, or two.

    >>> [duration(s) for s in (42.0, 800.0, 20_000.0, 4e6)]
    ['40 s', '13 min', '6 hours', '46 days']
    """
    for unit, size, until in (("s", 1, 100), ("min", 60, 100), ("hours", 3600, 48)):
        if seconds < until * size:
            value = seconds / size
            return f"{round(value, -1) if unit == 's' else round(value):.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _size(number: float) -> str:
    return f"{number / 2**30:.2g} GB" if number < 99 * 2**30 else f"{number / 2**30:,.0f} GB"
