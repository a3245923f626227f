"""Workers that start up and send: exact values against draws, plans against a global
search.

Random problems of Weibull, exponential and two-point start-ups. Values: E τ̂ and P(τ̂ ≤
t) against NumPy's own draws, in standard errors of these. Plans: the runtime of `solve`
over the best of differential evolution.
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax import plotting
from bcgc_jax._pytree import replace
from experiments import looks
from experiments.report import grouped, print_table, run_command, save, with_progress

# What all problems are padded to, so that each pair of families compiles once.
SIZE = 8
VALUES = 2000
PLANS = 200
DRAWS = 1_000_000
# Draws at a time.
_CHUNK = 100_000
# Differential evolution: candidates, generations, the weight of a difference, and the
# share of it that is taken over.
_POPULATION = 48
_GENERATIONS = 80
_WEIGHT = 0.7
_TAKEN = 0.8
_COORDINATES = 2000


class Case(NamedTuple):
    """A problem, a partition, and NumPy's draws of start-ups and times, `[D, N]`."""

    problem: bcgc.Problem
    partition: np.ndarray
    draw: Any


class Value(NamedTuple):
    """An exact value, and the mean of draws less it, in standard errors."""

    start_up: str
    cycle_time: str
    overlap: bool
    num_workers: int
    expected_runtime: float
    runtime_error: float
    runtime_z: float
    deadline: float
    probability: float
    probability_z: float


class Plan(NamedTuple):
    """What `solve` found, the best of a global search, and the bound."""

    start_up: str
    cycle_time: str
    num_workers: int
    runtime: float
    global_search: float
    excess: float
    lower_bound: float


def cases(rng: np.random.Generator, count: int) -> Iterator[Case]:
    """Random problems, by family, so that few programs are compiled at a time."""
    kinds = [(start, time) for start in range(3) for time in range(3)]
    for start, time in (kinds[i * len(kinds) // count] for i in range(count)):
        yield _case(rng, start, time)


def _case(rng: np.random.Generator, start: int, time: int) -> Case:
    workers = int(rng.integers(2, SIZE + 1))
    a, b, c = rng.uniform(0.2, 2.0, 3)
    laws = (
        (bcgc.ShiftedExponential(1 / a, b), lambda r, s: b + a * r.exponential(size=s)),
        (bcgc.Weibull(a, 0.6 + c, 0.2), lambda r, s: 0.2 + a * r.weibull(0.6 + c, s)),
        (
            bcgc.Empirical([a, 2 * b, 3 * c]),
            lambda r, s: r.choice([a, 2 * b, 3 * c], s),
        ),
    )
    law, draw_time = laws[time]
    # From a tenth of the work to ten times as long.
    unit = (
        _COORDINATES / workers * float(rng.uniform(0.5, 2)) * 10 ** rng.uniform(-1, 1)
    )
    k = rng.uniform(0.5, 2.5)
    p = rng.uniform(0.05, 0.95)
    fast = 0.1 * unit
    slow = 3 * unit
    starts = (
        (bcgc.Weibull(unit, k), lambda r, s: unit * r.weibull(k, s)),
        (bcgc.Exponential(1 / unit), lambda r, s: r.exponential(unit, s)),
        (
            bcgc.TwoSpeed(fast, slow, p),
            lambda r, s: np.where(r.random(s) < p, slow, fast),
        ),
    )
    start_up, draw_start = starts[start]
    send, setup, chain = (float(rng.uniform(0, largest)) for largest in (1, 50, 0.3))
    costs: Any = {
        "send_time": send / workers,
        "setup_cycles": setup,
        "chain_cycles": chain,
    }
    options: Any = {"max_workers": SIZE, "start_up": start_up, "overlap": time == 0}
    problem = bcgc.Problem(law, workers, _COORDINATES, **options, **costs)
    share = rng.dirichlet(np.ones(workers)) * (rng.random(workers) < 0.7)
    share[rng.integers(workers)] += 0.2
    partition = np.zeros(SIZE)
    partition[:workers] = _COORDINATES * share / share.sum()
    return Case(
        problem, partition, lambda r, shape: (draw_start(r, shape), draw_time(r, shape))
    )


def runtimes(case: Case, starts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """τ̂ of draws, `[D]`, level by level as the definition has it."""
    problem = case.problem
    x = case.partition
    workers = starts.shape[1]
    c = float(np.asarray(problem.send_time))
    kappa = 1 / workers  # one sample, one cycle
    f, h = (float(np.asarray(a)) for a in (problem.setup_cycles, problem.chain_cycles))
    last = np.zeros(len(starts))
    work = 0.0
    sent = 0.0
    before = []
    for n in range(workers):
        if x[n] == 0:
            continue
        work = work + (n + 1) * x[n]
        sent_before = sent
        sent = sent + x[n]
        cycles = work + (n + 1) * (f + h * sent)
        before.append((cycles, sent_before))
        if problem.overlap:
            ready = np.max(
                [starts + times * kappa * y + c * (sent - s) for y, s in before], axis=0
            )
        else:
            ready = starts + times * kappa * cycles + c * sent
        last = np.maximum(
            last, np.partition(ready, workers - n - 1, axis=1)[:, workers - n - 1]
        )
    return last


@jax.jit
def _exact(problem: bcgc.Problem, x: jax.Array, t: jax.Array) -> tuple[jax.Array, ...]:
    value, error = bcgc.plans.integrate_runtime(problem, x)
    return value, error, bcgc.completion_probability(problem, x, t * value)


def compute_values(seed: int, count: int = VALUES, draws: int = DRAWS) -> list[Value]:
    """Exact values of random problems, and how far draws are from them."""
    rng = np.random.default_rng(seed)
    rows = []
    for case in with_progress(list(cases(rng, count)), "values"):
        ratio = rng.uniform(0.5, 1.8)
        value, error, probability = map(
            float, _exact(case.problem, jnp.asarray(case.partition), ratio)
        )
        workers = int(np.asarray(case.problem.num_workers))
        chunks = [min(_CHUNK, draws - done) for done in range(0, draws, _CHUNK)]
        drawn = np.concatenate(
            [runtimes(case, *case.draw(rng, (size, workers))) for size in chunks]
        )
        runtime_z = (value - drawn.mean()) / (drawn.std() / np.sqrt(draws))
        # In a scale whose error is the same for all shares, also where few draws are
        # late.
        share = float(np.mean(drawn <= ratio * value))
        probability_z = (
            2
            * np.sqrt(draws)
            * (np.arcsin(np.sqrt(probability)) - np.arcsin(np.sqrt(share)))
        )
        start = *_names(case.problem), bool(case.problem.overlap), workers
        rows.append(
            Value(
                *start,
                value,
                error,
                runtime_z,
                ratio * value,
                probability,
                probability_z,
            )
        )
    return rows


def _names(problem: bcgc.Problem) -> tuple[str, str]:
    return type(problem.start_up).__name__, type(problem.cycle_time).__name__


@jax.jit
def _runtimes_of(problem: bcgc.Problem, partitions: jax.Array) -> jax.Array:
    # Half of the nodes: a search that is a millionth off finds the same.
    value = functools.partial(bcgc.plans.integrate_runtime, problem, num_nodes=64)
    return jax.vmap(lambda x: value(x).value)(partitions)


def global_search(
    problem: bcgc.Problem, rng: np.random.Generator, generations: int = _GENERATIONS
) -> float:
    """Return the least exact runtime that differential evolution (Storn & Price 1997)
    finds.

    Candidates are vectors whose positive parts are the shares, so that levels fall out
    of use.
    """
    workers = int(np.asarray(problem.num_workers))

    def value(candidates: np.ndarray) -> np.ndarray:
        shares = np.maximum(candidates, 0)
        shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
        x = np.zeros((len(shares), problem.max_workers))
        x[:, :workers] = _COORDINATES * shares
        runtimes = np.asarray(_runtimes_of(problem, jnp.asarray(x)))
        return np.where(
            np.isfinite(runtimes) & (shares.sum(axis=1) > 0.5), runtimes, np.inf
        )

    people = (
        rng.dirichlet(np.ones(workers), _POPULATION)
        - rng.uniform(0, 0.3, (_POPULATION, 1)) / workers
    )
    people[: 2 * workers : 2] = np.eye(workers)
    people[np.argmax(people, axis=1) < 0] = 1 / workers
    values = value(people)
    for _ in range(generations):
        a, b, c = (people[rng.permutation(_POPULATION)] for _ in range(3))
        best = people[np.argmin(values)]
        base = np.where(rng.random((_POPULATION, 1)) < 0.5, best, a)
        is_mutated = rng.random(people.shape) < _TAKEN
        trial = np.where(
            is_mutated,
            base + _WEIGHT * rng.uniform(0.5, 1, (_POPULATION, 1)) * (b - c),
            people,
        )
        trial = trial / np.maximum(
            np.maximum(trial, 0).sum(axis=1, keepdims=True), 1e-3
        )
        tried = value(trial)
        better = tried < values
        people = np.where(better[:, None], trial, people)
        values = np.where(better, tried, values)
    return float(values.min())


def compute_plans(
    seed: int, count: int = PLANS, generations: int = _GENERATIONS
) -> list[Plan]:
    """Plans of random problems, and what a global search finds."""
    rng = np.random.default_rng(seed)
    rows = []
    for case in with_progress(list(cases(rng, count)), "plans"):
        # Setup is a search of its own, over levels.
        problem = replace(
            case.problem, setup_cycles=None, chain_cycles=None, overlap=False
        )
        solution = bcgc.solve(problem)
        runtime = float(solution.expected_runtime)
        bound = float(solution.lower_bound)
        best = global_search(problem, rng, generations)
        workers = int(np.asarray(problem.num_workers))
        rows.append(
            Plan(*_names(problem), workers, runtime, best, runtime / best - 1, bound)
        )
    return rows


def print_values(rows: Sequence[Value]) -> None:
    """Tell how many standard errors away the draws are, family by family."""
    lines = []
    families = sorted(grouped(rows, lambda row: (row.start_up, row.cycle_time)).items())
    for names, rows_of_family in [*families, (("all", ""), rows)]:
        z = np.abs([[row.runtime_z, row.probability_z] for row in rows_of_family])
        spread = [
            (f"{size.max():.2f}", f"{100 * np.mean(size <= 1):.0f} %") for size in z.T
        ]
        lines.append([*names, len(rows_of_family), *spread[0], *spread[1]])
    header = [
        "start-up",
        "cycle time",
        "problems",
        "E: worst",
        "within 1",
        "P: worst",
        "within 1",
    ]
    print_table(
        "Exact values less draws' means, in standard errors of these", header, lines
    )
    worst = max(row.runtime_error / row.expected_runtime for row in rows)
    print(
        "\n"
        "E: expected runtime, P: completion probability. Reported errors of E: at most "
        f"{worst:.1e} of it."
    )


def print_plans(rows: Sequence[Plan]) -> None:
    """Tell how far the plan that is found is from a global search's best."""
    lines = []
    for name, rows_of_law in [
        *sorted(grouped(rows, lambda row: row.start_up).items()),
        ("all", rows),
    ]:
        excess = np.array([row.excess for row in rows_of_law])
        largest = f"{100 * excess.max():.4f} %"
        smallest = f"{100 * excess.min():.2f} %"
        gap = float(np.median([row.runtime / row.lower_bound for row in rows_of_law]))
        lines.append(
            [
                name,
                len(rows_of_law),
                largest,
                smallest,
                np.count_nonzero(excess > 1e-3),
                gap,
            ]
        )
    header = [
        "start-up",
        "problems",
        "largest",
        "smallest",
        "over 0.1 %",
        "found / bound, median",
    ]
    print_table(
        "Runtime of the plan that is found, above the best of a global search",
        header,
        lines,
    )


def draw(values: Sequence[Value], plans: Sequence[Plan]):
    """Ordered distances beside a normal distribution's; excess over the search."""
    canvas, (left, right) = plotting.new_figure(1, 2, size=(8.4, 3.9))
    rng = np.random.default_rng(0)
    normal = np.sort(rng.standard_normal((999, len(values))), axis=1)
    expected = normal.mean(axis=0)
    low, high = np.quantile(normal, (0.025, 0.975), axis=0)
    left.fill_between(
        expected, low, high, color="0.8", linewidth=0, label="95 % of normal samples"
    )
    for name, marker, color, z in (
        ("expected runtime", "o", looks.COLORS[1], [row.runtime_z for row in values]),
        (
            "completion probability",
            "x",
            looks.COLORS[4],
            [row.probability_z for row in values],
        ),
    ):
        left.plot(expected, np.sort(z), marker, color=color, markersize=3, label=name)
    y = "exact value less mean of draws\n(standard errors)"
    title = f"(a) {len(values)} exact values differ\nfrom draws as chance does"
    plotting.label_axes(
        left, "quantile of the normal distribution (standard errors)", y, title=title
    )
    left.legend(frameon=False)
    excess = 100 * np.sort([row.excess for row in plans])
    share = 100 * (np.arange(excess.size) + 1) / excess.size
    look: Any = {"color": looks.COLORS[1], "markersize": 4, "drawstyle": "steps-post"}
    right.plot(excess, share, ".-", label="a plan", **look)
    right.axvline(0.1, color="0.4", linestyle="--", label="0.1 % slower")
    x = "runtime, above that of a global search (%)"
    title = f"(b) {len(plans)} plans against\na global search's"
    plotting.label_axes(right, x, "plans at most so slow (%)", title=title)
    right.legend(frameon=False, loc="lower right")
    return canvas


def run(
    out: Path,
    *,
    seed: int = 0,
    count: int = VALUES,
    draws: int = DRAWS,
    plans: int = PLANS,
    generations: int = _GENERATIONS,
) -> None:
    values = compute_values(seed, count, draws)
    print_values(values)
    plan_rows = compute_plans(seed + 1, plans, generations)
    print_plans(plan_rows)
    save(
        out,
        {"start_ups": values, "start_ups_plans": plan_rows},
        {"start_ups": draw(values, plan_rows)},
    )


if __name__ == "__main__":
    sys.exit(run_command(run))
