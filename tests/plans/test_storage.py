"""Who stores what by a plan, against what workers are given when a model is trained with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.coding.gradients import assign
from bcgc_jax.plans.completion import OneOfEach
from bcgc_jax.plans.groups import halving
from bcgc_jax.plans.plan import Plan, partition_plan
from bcgc_jax.plans.schedules import Group, schedule_of
from bcgc_jax.plans.storage import Storage

N, PARAMS = 6, [np.zeros(10)]
ONE = np.ones(4)
# Singles, pairs and threes, all: of workers that share the data by the size of their group, or equally.
GROUPS = halving(N)
BY_SIZE = np.array([[len(next(g for g in level if w in g)) for level in GROUPS] for w in (0, 1, 2)])
PLANS = {
    "a partition": (partition_plan(np.array([3.0, 0.0, 5.0, 2.0, 0.0, 0.0]), N), "random_cyclic"),
    "a schedule": (schedule_of([Group(1, 1), Group(3, 2)], [2.0, 5.0, 3.0]), None),
    "groups by size": (
        Plan(jnp.array([4.0, 3.0, 3.0, 0.0]), np.arange(4), BY_SIZE, ONE, OneOfEach(GROUPS, (0, 1, 2) * 2)),
        None,
    ),
    "groups of equal data": (
        Plan(jnp.array([4.0, 0.0, 6.0, 0.0]), np.arange(4), np.array([1, 2, 3, 6]), ONE, OneOfEach(GROUPS)),
        None,
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_worker_stores_what_its_tasks_go_over(name):
    plan, construction = PLANS[name]
    assigned = assign(jax.random.key(0), plan, PARAMS, N, construction=construction)
    storage = plan.storage(N)
    for worker in range(N):
        assert storage.subsets_of(worker) == assigned.held(worker)
        for j in assigned.held(worker):
            assert worker in storage.holders[j][0]
    assert [chunks[0][0] for chunks in storage.holders] == list(range(N))  # each stores its own


def test_neighbours_around_the_circle_are_an_arc():
    storage = Storage.of_subsets([(3, 0), (1,), (0, 1, 2, 3), (2, 3)])
    assert [storage.arc_of(worker) for worker in range(4)] == [(3, 2), (1, 1), (2, 4), (2, 2)]
