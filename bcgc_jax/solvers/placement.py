"""Places in nested groups: workers slow in the same measured steps are kept apart."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from bcgc_jax._pytree import check, check_shape, replace
from bcgc_jax.plans.completion import OneOfEach
from bcgc_jax.plans.loads import passes_of
from bcgc_jax.plans.plan import Plan
from bcgc_jax.problem import Problem

# Exchanges that are tried for each worker.
_TRIES = 30
# Operations in all: some seconds, whatever the length of a log.
_MOST = 4e9


def place_workers(problem: Problem, plan: Plan, times: ArrayLike) -> Plan:
    r"""The same plan of nested groups, with the workers in other places.

    minimise Σ_s τ̂(plan, T_s(π_1), …, T_s(π_N)) over permutations π of the workers, for
    cycle times T of S measured steps. Random exchanges of three workers are kept where
    they help: a local minimum.

    Groups need one worker each, so workers which are often slow in the same step belong
    to different groups. The plan's expected runtime supposes independent workers that
    are alike, and is the same in all places.

    Args:
      problem: whose plan it is; start-ups and links do not count here.
      plan: of `Nested`.
      times: `[S, N]`, of the same workers: `measured.Trace.rows()`, or draws of
        `Heterogeneous` ones.

    Raises ValueError for another plan, and for times of other workers.

    >>> from bcgc_jax import ShiftedExponential, solve
    >>> problem = Problem(
    ...     ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=2_000
    ... )
    >>> plan = solve(problem, "nested").plan  # 0 alone, 1 and 2 in a group
    >>> times = np.array(
    ...     [[1.0, 9.0, 9.0], [9.0, 1.0, 1.0]]
    ... )  # but 1 and 2 are slow together
    >>> place_workers(problem, plan, times).completion.groups[1]
    ((2,), (0, 1))
    """
    rule: Any = plan.completion
    rows = np.asarray(times, float)
    if rule is None or not rule.groups:
        raise ValueError(
            "only plans of nested groups have places: elsewhere one worker is as good "
            "as another"
        )
    size = rule.num_workers
    check_shape(
        "times", rows, (None, size), "a row for each step, a column for each worker"
    )
    check("times", rows, "> 0")
    passes = passes_of(problem, plan)
    assert passes is not None
    work = passes.of("block").end.T
    # Members side by side: a group's first is the least of a run of workers.
    group = np.array([_group_of(level) for level in rule.groups])
    order = np.lexsort(group)
    begins = [np.flatnonzero(np.diff(level[order], prepend=-1)) for level in group]
    spent = np.broadcast_to(work, (size, len(group)))[order].T[:, :, None]
    columns = np.ascontiguousarray(rows.T)

    def total(place: np.ndarray) -> float:
        times = columns[place[order]]
        runtime = np.zeros(len(rows))
        for of_task, begin in zip(spent, begins, strict=True):
            ready = np.minimum.reduceat(of_task * times, begin).max(axis=0)
            runtime = np.maximum(runtime, ready)
        return float(runtime.sum())

    rng = np.random.default_rng(0)
    place = np.arange(size)
    least = total(place)
    tries = min(_TRIES * size, int(_MOST / (rows.size * len(group))))
    for _ in range(tries):
        exchanged = rng.choice(size, min(3, size), replace=False)
        trial = place.copy()
        trial[exchanged] = place[rng.permutation(exchanged)]
        if (value := total(trial)) < least:
            place = trial
            least = value
    groups = tuple(
        tuple(_placed(group, place) for group in level) for level in rule.groups
    )
    kinds = None
    if rule.kinds is not None:
        kinds = tuple(rule.kind_of[np.argsort(place)].tolist())
    return replace(plan, completion=OneOfEach(groups, kinds))


def _placed(group: tuple[int, ...], place: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(place[list(group)].tolist()))


def _group_of(level: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """The number of each worker's group."""
    number_of = np.zeros(sum(map(len, level)), int)
    for number, group in enumerate(level):
        number_of[list(group)] = number
    return number_of
