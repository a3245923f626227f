"""Every method for one problem, side by side, and the setup that a plan stands."""

import functools
import itertools
import textwrap
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import Numbers
from bcgc_jax.balancing.scheme_names import BASELINES, PROPOSED, SHARED
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.loads import partition_of_units
from bcgc_jax.plans.simulation import added_in_a_row
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, assess
from bcgc_jax.solvers.baselines import alpha_of
from bcgc_jax.solvers.method import Method
from bcgc_jax.solvers.methods import (
    LIMIT,
    Methods,
    each_method,
    is_limit,
    method_of,
)
from bcgc_jax.solvers.solve import solve
from bcgc_jax.traces.intervals import percent

BARS = 20
_LINE = "{:<21} {:>10} {:>9} {:>11} {:>12}  {:<20}  {}"
EVERY = (*PROPOSED, *SHARED, *BASELINES, LIMIT)


class Comparison(dict[str, Solution]):
    """Solutions by the name of their method, the fastest first; its `repr` is a table.

    Attributes:
      baseline: the fastest scheme older than the paper that queries no worker, listed
        or not; or None.
      uncoded: the scheme that what is saved is of, listed or not; or None.
    """

    def __init__(
        self,
        solutions: Iterable[Solution],
        baseline: Solution | None,
        uncoded: Solution | None,
    ) -> None:
        # NaN, of what does not exist, is last.
        super().__init__(
            (solution.method, solution) for solution in sorted(solutions, key=_runtime)
        )
        self.baseline = baseline
        self.uncoded = uncoded

    def __repr__(self) -> str:
        head = (
            "runtime",
            "saved",
            "vs baseline",
            "above opt. ≤",
            "share of coordinates",
            "status",
        )
        rows = [
            _LINE.format("scheme", *head),
            *itertools.starmap(self._line, self.items()),
        ]
        best = "none" if self.baseline is None else self.baseline.method
        return "\n".join(
            [*rows, f"Best baseline: {best}.", *self._inexact, *self._chained]
        )

    def _line(self, name: str, solution: Solution) -> str:
        value = _for_used(solution)
        least = np.nan
        if "optimal" in self:
            least = float(self["optimal"].lower_bound)
        bound = np.nan
        if solution.bound_of == "levels":
            bound = least
        label = name
        if name == "tandon_partial":
            label = f"{name} α {alpha_of(solution):.3g}"
        versus_baseline = ""
        if not is_limit(name):
            versus_baseline = _percentage(value / _finite(self.baseline) - 1, "+z.1f")
        return _LINE.format(
            label,
            f"{value:.5g}",
            _percentage(1 - value / _finite(self.uncoded)),
            versus_baseline,
            _percentage(value / bound - 1, ".3g"),
            _plan(solution),
            Status(int(solution.status)).name.lower(),
        )

    @property
    def _inexact(self) -> list[str]:
        lost = []
        for name, solution in self.items():
            needs = solution.needs
            if needs is not None and not needs.exact_gradient:
                lost.append(f"{name} {percent(float(needs.lost))} %")
        said = (
            "Samples that are lost, with runtimes for as many that are used as a step "
            "has"
        )
        if lost:
            return [f"{said}: {', '.join(lost)}."]
        return []

    @functools.cached_property
    def _chained(self) -> list[str]:
        times = []
        for name, solution in self.items():
            chained = chained_runtime(solution, float(solution.expected_runtime))
            if chained is not None:
                used = _used(solution)
                chained = Expectation(chained.value / used, chained.error / used)
            times.append((name, _for_used(solution), chained))
        return [textwrap.fill(line, 100) for line in in_a_row(times)]


def in_a_row(
    times: Iterable[tuple[str, float, Expectation | None]], unit: float = 1.0
) -> list[str]:
    """A sentence on those that take 2 % longer one step after the other, the fastest
    first.

    From their names, the means of fresh steps and those of `chained_runtime`.
    """
    longer = []
    for name, fresh, chained in times:
        if chained is not None and chained.value > 1.02 * fresh:
            longer.append((float(chained.value), float(chained.error), name, fresh))
    if not longer:
        return []
    longer.sort(key=lambda row: row[0])
    slowdowns = [
        f"{name} {value / unit:.4g} (×{value / fresh:.2f})"
        for value, _, name, fresh in longer
    ]
    largest_error = max(100 * error / value for value, error, _, _ in longer)
    return [
        "One step after the other, each worker first ends the pass that it has begun. "
        "Then these take longer, by draws with a standard error up to "
        f"{largest_error:.1g} %: {', '.join(slowdowns)}."
    ]


def chained_runtime(
    solution: Solution, fresh: float, problem: Problem | None = None
) -> Expectation | None:
    """E τ of steps one after the other, and its standard error; `fresh` is E τ of a
    single step.

    Each worker first ends the pass that it has begun. By draws of the `problem`, by
    default the solution's. None where it is not known who does what, or there is too
    much to draw.
    """
    problem = problem or solution.problem
    plan = solution.plan
    if (
        problem is None
        or plan is None
        or plan.completion is None
        or not np.isfinite(fresh)
    ):
        return None
    rounded = solution.rounded
    scheme = (
        plan if rounded is None else partition_of_units(problem, jnp.asarray(rounded))
    )
    overrun = added_in_a_row(problem, scheme)
    if overrun is None:
        return None
    added, error = overrun
    return Expectation(jnp.asarray(fresh + added), jnp.asarray(error))


def _used(solution: Solution) -> float:
    """The share of a step's samples that are used."""
    if solution.needs is None:
        return 1.0
    return 1 - float(solution.needs.lost)


def _for_used(solution: Solution) -> float:
    """The runtime; of what loses samples for as many that are used as a step has."""
    used = _used(solution)
    if used > 0:
        return float(solution.expected_runtime) / used
    return np.nan


def _runtime(solution: Solution) -> float:
    """The runtime for as many samples that are used, `inf` of what does not exist."""
    return float(np.fmin(_for_used(solution), np.inf))


def _finite(solution: Solution | None) -> float:
    """The runtime, or NaN: nothing is a share of what is infinite or unknown."""
    runtime = np.nan
    if solution is not None:
        runtime = _runtime(solution)
    if np.isfinite(runtime):
        return runtime
    return np.nan


def _asks_nobody(solution: Solution) -> bool:
    """Whether it queries no worker, and gives the gradient of all data."""
    needs = solution.needs
    return needs is None or bool(needs.exact_gradient and not needs.round_trips)


def _percentage(share: float, form: str = "z.1f") -> str:
    if np.isfinite(share):
        return f"{percent(share, form)} %"
    return ""


def _plan(solution: Solution) -> str:
    """The bars of the levels that there are."""
    if int(solution.status) in (Status.INFEASIBLE, Status.INVALID):
        return ""
    if solution.rounded is None:
        return draw(None)
    assert solution.problem is not None
    workers = int(np.asarray(solution.problem.num_workers))
    return draw(np.asarray(solution.rounded)[:workers].tolist())


def draw(counts: Sequence[int] | None) -> str:
    """A bar for each level, or for each group of levels if there are more than `BARS`.

    >>> draw([0, 4, 0])
    '·█·'
    """
    if counts is None:
        return "no partition"
    groups = np.array_split(np.asarray(counts, float), min(BARS, len(counts)))
    share = np.array([g.sum() for g in groups]) / max(sum(counts), 1)
    # The square root keeps the small blocks visible; an empty group is a dot.
    bars = " ▁▂▃▄▅▆▇█"
    return "".join(
        "·" if s == 0 else bars[max(1, round(8 * float(np.sqrt(s))))] for s in share
    )


def compare(
    problem: Problem, methods: Methods = EVERY, *, key: Array | None = None
) -> Comparison:
    r"""Solutions of one problem by several methods, the fastest first.

    Without a key, methods that draw are left out unless they are asked for by
    `methods`. The baselines are solved too where they are not asked for: the best of
    all is what others are compared with. Raises ValueError as `solve` does, but for
    methods of the default list that this problem has no use for.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(
    ...     ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=2_000
    ... )
    >>> comparison = compare(problem, ["uncoded", "time", "optimal"])
    >>> list(comparison)
    ['optimal', 'time', 'uncoded']
    """
    tasks: dict[str, Method] = {}
    for method in map(method_of, each_method(methods)):
        if method.name in tasks:
            raise ValueError(
                f'two methods are named "{method.name}": compare their solutions one '
                "by one"
            )
        tasks[method.name] = method
    if methods is EVERY:
        required = {"optimal"}
    else:
        required = set(tasks)
    other_baselines = {name: method_of(name) for name in BASELINES if name not in tasks}
    solutions = list[Solution]()
    earlier = list[Solution]()
    uncoded = None
    for name, method in (tasks | other_baselines).items():
        try:
            solution = solve(problem, method, key=key)
        except ValueError:  # also of subgradients without a key
            if name in required:
                raise
            continue
        if name in tasks:
            solutions.append(solution)
        if name == "uncoded":
            uncoded = solution
        if (
            method.baseline
            and _asks_nobody(solution)
            and np.isfinite(_runtime(solution))
        ):
            earlier.append(solution)
    return Comparison(solutions, min(earlier, key=_runtime, default=None), uncoded)


def largest_setup(problem: Problem, partition: Numbers) -> float:
    r"""φ = f / (b L), the setup per backward pass at which x is as slow as the best
    single block.

    0 where the block is faster without any, inf for a single block itself. `problem` is
    without setup; L is the sum of the units' costs.

    With setup a single block takes 1 + φ times as long. Over 1 + φ, and with u = φ / (1
    + φ), its runtime stays the same, and that of x is E max_n T_(N-n) ((1 - u) y_n + u
    (n+1) L) over the levels in use: convex in u, so they meet once. Such a load is that
    of another partition, which `solve` has a program for.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(
    ...     ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=2_000
    ... )
    >>> round(largest_setup(problem, [900.0, 300.0, 800.0]), 2)
    0.05
    """
    x = np.asarray(partition, problem.dtype)
    total = float(problem.total)
    subsets = np.arange(1, x.size + 1)
    used = x > 0
    if used.sum() < 2:
        return np.inf
    work = np.cumsum(subsets * x)
    setup = total * np.maximum.accumulate(np.where(used, subsets, 0))
    block = float(solve(problem, "single_block").expected_runtime)

    def excess(u: float) -> float:
        blocks = np.diff((1 - u) * work + u * setup, prepend=0) / subsets
        size = float(blocks.sum()) / total
        solution = assess(problem, jnp.asarray(blocks / size), whole_numbers=False)
        return float(solution.expected_runtime) * size / block - 1

    low = 0.0
    high = 1.0
    if not excess(low) < 0:
        return 0.0
    for _ in range(20):
        u = (low + high) / 2
        if excess(u) < 0:
            low = u
        else:
            high = u
    return low / (1 - low)
