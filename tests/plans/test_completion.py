"""One worker of each nested group, by enumeration and draws; blocks of all rules."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.plans.completion import AnyOf, FirstHolder, OneOfEach
from bcgc_jax.plans.evaluate import expected_completion
from bcgc_jax.plans.groups import kinds_by_size
from bcgc_jax.plans.worker import Load, Worker, delivered
from tests.oracles import laws
from tests.problems import nested_groups, slow

pytestmark = pytest.mark.usefixtures("x64")


def _late(survival, groups):
    with np.errstate(divide="ignore"):
        return float(jax.jit(OneOfEach(groups).late)(-np.log(survival)))


HALVES = nested_groups((1, 2, 4), 4)
# Five workers in halves: 2 + 3, the three 1 + 2; the last block without a group of all.
UNEVEN = (tuple((w,) for w in range(5)), ((0, 1), (2,), (3, 4)), ((0, 1), (2, 3, 4)))


@pytest.mark.parametrize(
    "groups",
    [
        *(
            nested_groups((1,), 1),
            nested_groups((1, 2, 6), 6),
            HALVES,
            HALVES[1:],
            HALVES[::2],
        ),
        *(UNEVEN, (*UNEVEN, ((0, 1, 2, 3, 4),))),
    ],
)
def test_late_groups_are_as_probable_as_by_enumeration(groups):
    """Groups of workers that are alike, and of workers with chances of their own."""
    workers = sum(map(len, groups[0]))
    tasks = len(groups)
    for kinds in (None, kinds_by_size(groups)[0]):
        rule = OneOfEach(groups, kinds)
        kind_of = kinds or (0,) * workers
        p = np.random.default_rng(workers + tasks).dirichlet(
            np.ones(tasks + 1), rule.num_kinds
        )
        late = math.fsum(
            math.prod(p[kind_of[w], r] for w, r in enumerate(done))
            for done in itertools.product(range(tasks + 1), repeat=workers)
            if any(
                max(done[w] for w in group) <= k
                for k, level in enumerate(groups)
                for group in level
            )
        )
        survival = np.cumsum(p, axis=1)[:, :-1]
        probability = float(jax.jit(rule.late)(-np.log(survival.ravel())))
        assert probability == pytest.approx(late, abs=4e-15)


def test_the_ends_and_a_late_tail_keep_their_digits():
    assert _late(np.ones(3), HALVES) == 1
    assert _late(np.zeros(3), HALVES) == 0
    # One worker late for the first block, a pair for the second, all four for the
    # third.
    late = np.array([1e-12, 1e-6, 1e-3])
    assert _late(late, HALVES) == pytest.approx(4e-12 + 2e-12 + 1e-12, rel=1e-5)
    slope = jax.jit(jax.grad(OneOfEach(HALVES).late))(np.array([np.inf, 0.7, 0.0]))
    assert np.all(np.isfinite(slope))


def test_as_many_may_be_late_for_ever_as_leave_one_in_each_group():
    late = [set(itertools.combinations(range(5), k)) for k in range(6)]
    for used in itertools.product((False, True), repeat=3):
        if any(used):
            groups = [
                set(group)
                for level, on in zip(UNEVEN, used, strict=True)
                if on
                for group in level
            ]
            fine = [
                all(not any(g <= set(gone) for g in groups) for gone in late[k])
                for k in range(6)
            ]
            count = OneOfEach(UNEVEN).tolerated(jnp.array(used, float))
            assert int(count) == sum(itertools.takewhile(bool, fine)) - 1


@pytest.mark.parametrize(
    "case",
    [
        laws.WEIBULL.case(1.0, 0.6, 0.3),
        *slow(laws.UNIFORM.case(1, 9), laws.EMPIRICAL.case(1, 2, 5)),
    ],
)
def test_exact_values_are_those_of_draws_and_slopes_those_of_differences(case):
    sizes = (1, 3, 12)
    workers = 12
    rng = np.random.default_rng(8)
    law = case.law()
    times = case.draw(rng, (200_000, workers))

    def mean(work, sent, start):
        worker = Worker(law, jnp.asarray(start) / 2.0)
        rule = OneOfEach(nested_groups(sizes, workers))
        return expected_completion(worker, Load(work, sent), rule)

    value_and_slope = jax.jit(jax.value_and_grad(mean, argnums=(0, 1), has_aux=True))
    for start in (0.0, 3.0):
        work = np.cumsum(rng.dirichlet(np.ones(3)))
        sent = np.cumsum(rng.uniform(0, 0.3, 3))
        tau = np.zeros(len(times))
        for size, y, c in zip(sizes, work, sent, strict=True):
            ready = (start / 2 + y * times + c).reshape(len(times), -1, size)
            tau = np.maximum(tau, ready.min(axis=2).max(axis=1))
        (value, error), slopes = value_and_slope(work, sent, start)
        assert float(value) == pytest.approx(
            tau.mean(), abs=4 * tau.std() / np.sqrt(tau.size)
        )
        assert float(error) < 1e-6 * float(value)
        # f is homogeneous, but for the start-up.
        of_load = float(work @ slopes[0] + sent @ slopes[1])
        assert of_load == pytest.approx(float(value) - start / 2, rel=1e-7)
        if case.atoms:
            continue
        move = rng.uniform(size=3)
        low, high = (
            float(value_and_slope(work + s * 1e-5 * move, sent, start)[0][0])
            for s in (-1, 1)
        )
        assert (high - low) / 2e-5 == pytest.approx(float(slopes[0] @ move), rel=1e-5)


def test_each_kind_of_workers_has_a_link_of_its_own():
    work = np.array([[1.0, 3.0], [2.0, 2.5]])
    sent = np.array([[0.5, 4.0], [0.5, 4.0]])

    @functools.partial(jax.jit, static_argnums=2)
    def delivery(work, sent, kinds=1):
        return delivered(Load(work, sent, kinds), jnp.array([1.0]), True)

    together = delivery(work.ravel(), sent.ravel(), 2)
    apart = [delivery(*loads) for loads in zip(work, sent, strict=True)]
    np.testing.assert_allclose(together, np.concatenate(apart), rtol=1e-6)


WORKERS, TASKS = 4, 5
SURVIVES = np.array([0, 2, 2, 1, 3])
GROUPS = nested_groups((1, 2, 2, 4, 4), WORKERS)


def _any_of(finish: Any) -> list[float]:
    """With N - n of the workers, taken in all ways, the earliest."""
    counts = [WORKERS - int(n) for n in SURVIVES]
    return [
        min(max(subset) for subset in itertools.combinations(row, n))
        for row, n in zip(finish, counts, strict=True)
    ]


def _first_holder(finish: Any) -> list[float]:
    """Worker w does subset w + k as its k-th."""
    return [
        max(
            min(row[(j - k) % WORKERS] for k, row in enumerate(finish))
            for j in range(WORKERS)
        )
    ]


def _one_of_each(finish: Any) -> list[float]:
    return [
        max(min(row[w] for w in g) for g in groups)
        for row, groups in zip(finish, GROUPS, strict=True)
    ]


@pytest.mark.parametrize(
    ("rule", "definition"),
    [
        (AnyOf(WORKERS, SURVIVES), _any_of),
        (FirstHolder(WORKERS), _first_holder),
        (OneOfEach(GROUPS), _one_of_each),
    ],
)
def test_a_block_is_there_when_its_rule_says_so(rule: Any, definition: Any) -> None:
    finish = np.random.default_rng(0).exponential(1.0, (3, 2, TASKS, WORKERS))
    # two who never answer, and a task that nobody does
    finish[0, 0, :, :2] = finish[2, 1, 1] = np.inf
    finish[1, 1, 1:] = finish[1, 1, :, 0] = np.inf  # one alone
    ends = rule.blocks(finish, np.arange(TASKS))
    assert isinstance(ends, np.ndarray)
    want = [[definition(table) for table in row] for row in finish]
    np.testing.assert_array_equal(ends, want)
    blocks = jax.jit(lambda times: rule.blocks(times, np.arange(TASKS)))
    compiled = blocks(finish.astype(np.float32))
    np.testing.assert_array_equal(compiled, np.array(want, np.float32))
    assert jnp.isinf(compiled).any()
