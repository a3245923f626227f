r"""Reproduce the journal paper's completion probabilities, and search for better plans.

Source: Wang, Cui, Li, Zou and Xiong, Optimization-based block coordinate gradient
coding for mitigating partial stragglers in distributed learning, IEEE Transactions on
Signal Processing, 2023. Cycle times are shifted exponential with shift 1, M = 50,
b = 1, and the deadline is 10^6.5.

The figures show completion probabilities against N, the rate, L and the deadline, with
the best plan of the search. Other figures show expected runtimes against L, the
convergence, and plans between the fastest and the most probable one. The study takes
some minutes.

Two closed forms use that level n is late if n + 1 workers are late, with T > θ_n =
t/(κ y_n) and κ = M b/N. So

    P(τ̂ > t) ≤ Σ_n C(N, n+1) P(T > θ_n)^(n+1),

and the ratio of the two sides tends to 1 as t tends to infinity.

Two published values of the journal's closed form differ from its formula: 0.51 instead
of 0.289 (N = 10), and 0.76 instead of 0.712 (N = 20, rate 0.1, L = 40,000). The other
seven values agree within 0.012.
"""

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax.exact.bisection import bisect
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.solvers.deadline import STARTS, completion_partition
from experiments import looks
from experiments.report import (
    grouped,
    number,
    print_table,
    run_command,
    save,
    with_progress,
)

SCHEMES = (
    "deadline",
    "equal_risk",
    "large_deadline",
    "time",
    "frequency",
    "optimal",
    "single_block",
)
# What the journal calls them.
PUBLISHED = {
    "deadline": "stationary_point",
    "large_deadline": "large_deadline",
    "single_block": "single_block",
}
REFERENCE = Path(__file__).resolve().parent / "data" / "published_completion.csv"

NUM_WORKERS = 20
RATE = 0.1
COORDINATES = 40_000
DEADLINE = 10**6.5
WORKERS_GRID = (5, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50)
RATE_GRID = tuple(10 ** (e / 20) for e in range(-24, -13))
COORDINATES_GRID = tuple(range(20_000, 80_001, 5_000))
DEADLINE_GRID = tuple(10 ** (e / 20) for e in range(122, 135))
STEPS = (0, 1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200)
NUM_PLANS = 9
MILLION = 1e6
# Lines that only their markers tell apart in grey.
ALIKE = ("time", "frequency")
TITLE = (
    "lines: computed exactly; open markers: published. What is not on the axis: "
    r"$N = 20$, $\mu = 0.1$, $L = 40\,000$, deadline $10^{6.5}$"
)
# The published plans of its iterative method are not those of a line that is drawn.
ITERATIVE = plotting.Style("the journal's iterative method (published)", "#666666", "X")


class Point(NamedTuple):
    """A problem and its deadline, on the axis of a panel."""

    panel: str
    num_workers: int = NUM_WORKERS
    rate: float = RATE
    num_coordinates: int = COORDINATES
    deadline: float = DEADLINE

    @property
    def x(self) -> float:
        return float(getattr(self, AXES[self.panel][0]))

    def problem(self, max_workers: int = 0) -> bcgc.Problem:
        law = bcgc.ShiftedExponential(self.rate, 1.0)
        return bcgc.Problem(
            law,
            self.num_workers,
            self.num_coordinates,
            50.0,
            max_workers=max_workers or self.num_workers,
        )


# What changes, the axis, its ticks, and the panel's title.
AXES: Mapping[str, tuple[str, str, tuple[float, ...], str]] = {
    "a": (
        "num_workers",
        "number of workers $N$",
        (5, 10, 20, 30, 40, 50),
        "(a) more workers miss it less often",
    ),
    "b": (
        "rate",
        r"rate $\mu$ (1 / unit of cycle time)",
        (0.07, 0.1, 0.14, 0.2),
        "(b) faster workers miss it less often",
    ),
    "c": (
        "num_coordinates",
        "coordinates $L$",
        (20_000, 40_000, 60_000, 80_000),
        "(c) larger models miss it more often",
    ),
    "d": (
        "deadline",
        "deadline ($10^6$ cycles × unit of cycle time)",
        (),
        "(d) later deadlines are missed less often",
    ),
}


class Row(NamedTuple):
    """One scheme at one point; `published` is the journal's."""

    panel: str
    x: float
    scheme: str
    completion: float
    expected_runtime: float
    published: float | None


class Setting(NamedTuple):
    """The best completion probability found in a setting, and the published ones."""

    num_workers: int
    rate: float
    num_coordinates: int
    best_found: float
    equal_risk: float
    large_deadline: float
    published_point: float
    published_closed_form: float


class Plan(NamedTuple):
    """A plan of N = 20: a scheme's, or the fastest in time as often as `asked`."""

    scheme: str
    asked: float | None
    completion: float
    expected_runtime: float


class Step(NamedTuple):
    """The completion probability from a start after so many steps."""

    start: str
    steps: int
    completion: float


Published = Mapping[tuple[int, str, int], Mapping[str, float]]


def read_published(path: Path = REFERENCE) -> Published:
    """The published values by (N, rate to six digits, L)."""
    published = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            workers, rate, count = (
                row.pop(name) for name in ("num_workers", "rate", "num_coordinates")
            )
            values = {name: float(value) for name, value in row.items()}
            published[int(workers), f"{float(rate):.6g}", int(count)] = values
    return published


def grid() -> list[Point]:
    """The points of the four panels."""
    grids: Any = zip(
        AXES, (WORKERS_GRID, RATE_GRID, COORDINATES_GRID, DEADLINE_GRID), strict=True
    )
    return [
        Point(panel)._replace(**{AXES[panel][0]: x})
        for panel, values in grids
        for x in values
    ]


@jax.jit
def large_deadline_partition(problem: bcgc.Problem) -> jax.Array:
    r"""Return x_n = L / ((n+1) H_N), `[max_workers]`: the most probable by t → ∞."""
    share = jnp.where(
        problem.exists,
        1 / jnp.arange(1, problem.max_workers + 1, dtype=problem.dtype),
        0,
    )
    return problem.total * share / jnp.sum(share)


@jax.jit
def equal_risk_partition(problem: bcgc.Problem, deadline: float) -> jax.Array:
    r"""Return x with equal terms C(N, n+1) P(T > θ_n)^(n+1) = e^-a above,
    `[max_workers]`.

    y_n = t/(κ θ_n), Λ(θ_n) = (a + log C(N, n+1)) / (n+1) with Λ = -log P(T > ·), and
    the one number a by bisection, so that Σ x_n = L; of a deadline that is too short
    for any a, the shares at a = 0.
    """
    law = iteration_of(problem).pooled()
    workers = jnp.asarray(problem.num_workers, problem.dtype)
    n = jnp.arange(problem.max_workers, dtype=problem.dtype)
    choices = (
        gammaln(workers + 1) - gammaln(n + 2) - gammaln(jnp.maximum(workers - n, 1))
    )
    t = jnp.asarray(deadline, problem.dtype) / problem.scale

    def partition(a: jax.Array) -> jax.Array:
        times = law.inverse_cumulative_hazard(jnp.maximum(a + choices, 0) / (n + 1))
        load = jnp.where(times > 0, t / jnp.where(times > 0, times, 1), jnp.inf)
        x = jnp.diff(load, prepend=jnp.zeros(1, load.dtype)) / (n + 1)
        return jnp.where(problem.exists, jnp.maximum(x, 0), 0)

    zero = jnp.zeros((), problem.dtype)
    _, a = bisect(lambda a: jnp.sum(partition(a)) < problem.total, zero, zero + 1e4, 60)
    x = partition(a)
    return problem.total * x / jnp.sum(x)


def partition_of(scheme: str, problem: bcgc.Problem, deadline: float) -> jax.Array:
    """The plan of a scheme."""
    if scheme == "equal_risk":
        return equal_risk_partition(problem, deadline)
    if scheme == "large_deadline":
        return large_deadline_partition(problem)
    method: Any = scheme
    if scheme == "deadline":
        method = bcgc.Deadline(deadline)
    solution = bcgc.solve(
        problem, bcgc.Optimal(tolerance=1e-5) if scheme == "optimal" else method
    )
    assert solution.partition is not None
    return solution.partition


def compute(points: Sequence[Point], published: Published) -> Iterator[Row]:
    """Every scheme at every point; of one panel one program."""
    for point in with_progress(points, "completion"):
        problem = point.problem(
            max(p.num_workers for p in points if p.panel == point.panel)
        )
        published_values = published.get(
            (point.num_workers, f"{point.rate:.6g}", point.num_coordinates), {}
        )
        if point.deadline != DEADLINE:
            published_values = {}
        for scheme in SCHEMES:
            assessment = assess(scheme, problem, point.deadline)
            yield Row(
                point.panel,
                point.x,
                scheme,
                *assessment,
                published_values.get(PUBLISHED.get(scheme, "")),
            )


def assess(scheme: str, problem: bcgc.Problem, deadline: float) -> tuple[float, float]:
    """Completion probability and expected runtime."""
    x = partition_of(scheme, problem, deadline)
    in_time = bcgc.completion_probability(problem, x, deadline)
    runtime = bcgc.expected_runtime(problem, x)
    return float(in_time), float(runtime)


def compute_settings(published: Published) -> Iterator[Setting]:
    """Compute the exact probabilities of the schemes in each published setting."""
    for (workers, rate, count), theirs in with_progress(
        list(published.items()), "settings"
    ):
        problem = Point("a", workers, float(rate), count).problem()
        ours = (
            assess(scheme, problem, DEADLINE)[0]
            for scheme in ("deadline", "equal_risk", "large_deadline")
        )
        published_ones = theirs["stationary_point"], theirs["large_deadline"]
        values = *ours, *published_ones
        yield Setting(workers, float(rate), count, *values)


def compute_plans(workers: int, count: int) -> list[Plan]:
    """The schemes, and the plans between the fastest and the most probable one."""
    problem = Point("a", workers).problem()
    plans = [
        Plan(scheme, None, *assess(scheme, problem, DEADLINE)) for scheme in SCHEMES
    ]
    late = {plan.scheme: 1 - plan.completion for plan in plans}
    between = 1 - np.geomspace(late["optimal"], late["deadline"], count + 2)[1:-1]
    for asked in with_progress(between.tolist(), "plans between"):
        solution = bcgc.solve(problem, bcgc.Deadline(DEADLINE, min_completion=asked))
        assert solution.completion_probability is not None
        in_time = float(solution.completion_probability)
        plans.append(Plan("between", asked, in_time, float(solution.expected_runtime)))
    return plans


def compute_convergence(workers: int) -> list[Step]:
    """Search as `deadline` does, stopped after so many steps, in one program."""
    problem = Point("a", workers).problem()

    @jax.jit
    def after(steps: jax.Array) -> jax.Array:
        search: Any = completion_partition.__wrapped__  # type: ignore[attr-defined]
        return search(problem, DEADLINE, max_steps=steps).aux

    rows = []
    for steps in with_progress(STEPS, "convergence"):
        completions = after(jnp.asarray(steps))
        rows += [
            Step(start, steps, float(p))
            for start, p in zip(STARTS, completions, strict=True)
        ]
    return rows


def print_settings(settings: Sequence[Setting]) -> None:
    """Print the published and the exact probabilities of each setting."""
    header = [
        "N",
        "rate",
        "L",
        "closed form",
        "published",
        "equal risk",
        "iterative",
        "found",
    ]
    lines = []
    late = []
    for s in settings:
        place = [s.num_workers, f"{s.rate:.4g}", s.num_coordinates]
        theirs = (
            f"{s.large_deadline:.4f}",
            f"{s.published_closed_form:.3f}",
            f"{s.equal_risk:.6f}",
        )
        ours = f"{s.published_point:.3f}", f"{s.best_found:.8f}"
        lines.append([*place, *theirs, *ours])
        chances = f"{1 - s.published_point:.3g}", f"{1 - s.best_found:.4g}"
        late.append([*place, *chances])
    print_table(
        "Completion probability by 10^6.5: published and exact",
        header,
        lines,
    )
    print_table("Late: 1 - P", ["N", "rate", "L", "published", "found"], late)


def print_plans(plans: Sequence[Plan], workers: int) -> None:
    """Runtime and completion probability of schemes, and of plans between two."""
    least = min(plan.expected_runtime for plan in plans)
    lines = []
    for plan in sorted(plans, key=lambda plan: plan.expected_runtime):
        name = plan.scheme
        if plan.asked is not None:
            name = f"at least {plan.asked:.5f}"
        above = f"{100 * (plan.expected_runtime / least - 1):.2f} %"
        in_time = f"{plan.completion:.5f}", f"{1 - plan.completion:.4g}"
        lines.append([name, number(plan.expected_runtime, 5), above, *in_time])
    header = ["plan", "expected runtime", "above the least", "in time", "late"]
    print_table(f"Both at once, N = {workers}", header, lines)


def draw_completion(rows: Sequence[Row]) -> Any:
    """Four panels of the probability to miss the deadline."""
    canvas, panels = plotting.new_figure(2, 2, size=(8.4, 6.8), sharey=True)
    for axes, (panel, (_, label, ticks, title)) in zip(
        panels, AXES.items(), strict=True
    ):
        of_panel = (row for row in rows if row.panel == panel)
        scale = MILLION if panel == "d" else 1
        for scheme, rows_of_scheme in grouped(of_panel, lambda row: row.scheme).items():
            # Below this 1 - P is rounding.
            late = [
                1 - row.completion if 1 - row.completion > 1e-14 else np.nan
                for row in rows_of_scheme
            ]
            look = plotting.style(scheme)
            points = {}
            if scheme in ALIKE:
                points = {"marker": look.marker, "markersize": 5}
            axes.plot(
                [row.x / scale for row in rows_of_scheme],
                late,
                **plotting.curve(look) | points,
            )
            theirs = [
                (row.x / scale, 1 - row.published)
                for row in rows_of_scheme
                if row.published is not None
            ]
            published_look = look
            if scheme == "deadline":
                published_look = ITERATIVE
            axes.plot(*np.reshape(theirs, (-1, 2)).T, **looks.points(published_look))
        y_label = ""
        if panel in "ac":
            y_label = "probability to miss\nthe deadline"
        looks.label_axes(
            axes,
            label,
            y_label,
            title=title,
            log="xy" if panel == "b" else "y",
            x_ticks=ticks,
        )
    marked = {*PUBLISHED, *ALIKE} - {"deadline"}
    handles = []
    for scheme in SCHEMES:
        marks: Any = {"marker": scheme in marked, "filled": scheme in ALIKE}
        handles.append(looks.legend_handle(plotting.style(scheme), **marks))
    handles.append(looks.legend_handle(ITERATIVE._replace(line="none")))
    plotting.legend_outside(canvas, handles, place="lower", columns=3, title=TITLE)
    return canvas


def draw_plans(
    rows: Sequence[Row], steps: Sequence[Step], plans: Sequence[Plan]
) -> Any:
    """Draw runtime against L, the search, and plans from fastest to surest."""
    canvas, (left, middle, right) = plotting.new_figure(1, 3, size=(9.6, 4.3))
    of_panel = (row for row in rows if row.panel == "c")
    for scheme, rows_of_scheme in grouped(of_panel, lambda row: row.scheme).items():
        runtimes = [row.expected_runtime / MILLION for row in rows_of_scheme]
        left.plot(
            [row.x for row in rows_of_scheme],
            runtimes,
            **plotting.curve(plotting.style(scheme)),
        )
    runtime = "expected runtime\n($10^6$ cycles × unit of cycle time)"
    _, label, ticks, _ = AXES["c"]
    looks.label_axes(
        left, label, runtime, title="(a) what larger models take", x_ticks=ticks
    )
    best = max(step.completion for step in steps)
    searched = plotting.curve(plotting.style("deadline"))
    for steps_of_start in grouped(steps, lambda step: step.start).values():
        above = [
            100 * max((1 - step.completion) / (1 - best) - 1, 1e-8)
            for step in steps_of_start
        ]
        middle.plot(
            [step.steps for step in steps_of_start],
            above,
            **searched | {"linewidth": 1.2},
        )
    title = "(b) a search from seven starts\nends at one plan"
    excess = "more often late than the best (%)"
    middle.set_xscale("symlog", linthresh=1)
    looks.label_axes(
        middle,
        "steps of the search",
        excess,
        title=title,
        log="y",
        x_ticks=(0, 1, 10, 100),
    )
    middle.set_yticks((1e-6, 1e-3, 1, 1e3), ("≤ 1e-6", "0.001", "1", "1000"))
    between = looks.legend_handle(
        plotting.Style("fastest at each probability", "0.45", "."), filled=True
    )
    ends = [plan for plan in plans if plan.scheme in ("between", "optimal", "deadline")]
    for plan in plans:
        if plan.scheme not in ("between", "single_block", "large_deadline"):
            look = looks.points(plotting.style(plan.scheme), filled=True)
            right.plot(
                [100 * (1 - plan.completion)], [plan.expected_runtime / MILLION], **look
            )
    ends.sort(key=lambda plan: plan.completion)
    late = [100 * (1 - plan.completion) for plan in ends]
    right.plot(
        late,
        [plan.expected_runtime / MILLION for plan in ends],
        ".-",
        color="0.45",
        zorder=1,
    )
    title = "(c) faster, or more surely\nin time"
    plotting.label_axes(
        right, "probability to miss\nthe deadline (%)", runtime, title=title
    )
    handles = [
        looks.legend_handle(plotting.style(scheme), filled=True) for scheme in SCHEMES
    ]
    plotting.legend_outside(canvas, [*handles, between], place="lower", columns=4)
    return canvas


def run(
    out: Path,
    *,
    points: Iterable[Point] | None = None,
    workers: int = NUM_WORKERS,
    plans: int = NUM_PLANS,
) -> None:
    published = read_published()
    rows = list(compute(list(grid() if points is None else points), published))
    settings = list(compute_settings(published))
    between = compute_plans(workers, plans)
    steps = compute_convergence(workers)
    print_settings(settings)
    print_plans(between, workers)
    save(
        out,
        {
            "journal": rows,
            "journal_settings": settings,
            "journal_plans": between,
            "journal_steps": steps,
        },
        {
            "journal": draw_completion(rows),
            "journal_plans": draw_plans(rows, steps, between),
        },
    )


if __name__ == "__main__":
    sys.exit(run_command(run))
