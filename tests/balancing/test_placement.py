"""Who stores what by a plan, against what workers have in a training."""

import cmath
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.balancing.placement import spread, whole_subsets
from bcgc_jax.coding.gradients import assign
from bcgc_jax.plans.completion import OneOfEach
from bcgc_jax.plans.groups import halving
from bcgc_jax.plans.plan import Plan, cyclic_plan, partition_plan

N = 6
PARAMS = [np.zeros(10)]
ONE = np.ones(4)
# Singles, pairs and threes, all: of workers that share the data by the size of their
# group, or equally.
GROUPS = halving(N)
BY_SIZE = np.array(
    [[len(next(g for g in level if w in g)) for level in GROUPS] for w in (0, 1, 2)]
)
PLANS = {
    "a partition": (
        partition_plan(np.array([3.0, 0.0, 5.0, 2.0, 0.0, 0.0]), N),
        "random_cyclic",
    ),
    "a schedule": (cyclic_plan(10.0, 3), None),
    "groups by size": (
        Plan(
            jnp.array([4.0, 3.0, 3.0, 0.0]),
            np.arange(4),
            BY_SIZE,
            ONE,
            OneOfEach(GROUPS, (0, 1, 2) * 2),
        ),
        None,
    ),
    "groups of equal data": (
        Plan(
            jnp.array([4.0, 0.0, 6.0, 0.0]),
            np.arange(4),
            np.array([1, 2, 3, 6]),
            ONE,
            OneOfEach(GROUPS),
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_worker_stores_what_its_tasks_go_over(name):
    plan, construction = PLANS[name]
    assigned = assign(jax.random.key(0), plan, PARAMS, N, construction=construction)
    storage = plan.storage(N)
    for worker in range(N):
        assert {j for j, _ in storage.chunks()[worker]} == set(assigned.held(worker))
        for j in assigned.held(worker):
            assert worker in storage.holders[j][0]
    # Each stores its own.
    assert [chunks[0][0] for chunks in storage.holders] == list(range(N))


def test_each_two_workers_store_as_many_chunks_together_but_for_one():
    """8 · 5 · 4 / 63 = 2.5 of each subset; half as many tries leave some with four."""
    (of_subset, *_) = spread(64, 5, 8).holders
    distances = Counter(
        (a - b) % 64
        for holders in of_subset
        for a, b in itertools.permutations(holders, 2)
    )
    assert {distances[distance] for distance in range(1, 64)} == {2, 3}


def test_whole_subsets_have_the_offsets_of_which_no_wave_is_long():
    def waves(offsets):
        sums = [
            sum(cmath.exp(2j * cmath.pi * k * o / 20) for o in offsets)
            for k in range(1, 20)
        ]
        return round(sum(abs(wave) ** 8 for wave in sums), 6)

    pairs = [(0, *two) for two in itertools.combinations(range(1, 20), 2)]
    storage = whole_subsets(20, 3, 4)
    assert min(pairs, key=waves) == (0, 1, 5)
    for j, chunks in enumerate(storage.holders):
        assert chunks == ((j, (j + 1) % 20, (j + 5) % 20),) * 4
    assert whole_subsets(4, 4, 1).holders[2] == ((2, 3, 0, 1),)
    assert whole_subsets(4, 1, 2).holders[2] == ((2,), (2,))
