"""When blocks are there, of times: each rule against its definition, worker by worker, in NumPy and JAX."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.plans.completion import AnyOf, FirstHolder, OneOfEach
from tests.problems import nested_groups

WORKERS, TURN, BLOCK = 4, np.array([0, 0, 1, 1, 3]), np.array([0, 1, 1, 0, 1])
SURVIVES = np.array([0, 2, 2, 1, 3])
GROUPS = nested_groups((1, 2, 2, 4, 4), WORKERS)


def _any_of(finish: Any) -> list[float]:
    """With N - n of the workers, taken in all ways, the earliest."""
    counts = [WORKERS - int(n) for n in SURVIVES]
    return [
        min(max(some) for some in itertools.combinations(row, n))
        for row, n in zip(finish, counts, strict=True)
    ]


def _first_holder(finish: Any) -> list[float]:
    done: dict[tuple[int, int], float] = {}
    for (turn, block, row), w in itertools.product(zip(TURN, BLOCK, finish, strict=True), range(WORKERS)):
        task = int(block), int(w + turn) % WORKERS
        done[task] = min(done.get(task, np.inf), row[w])
    return [max(done.get((b, j), np.inf) for j in range(WORKERS)) for b in (0, 1)]


def _one_of_each(finish: Any) -> list[float]:
    return [max(min(row[w] for w in g) for g in groups) for row, groups in zip(finish, GROUPS, strict=True)]


@pytest.mark.parametrize(
    ("rule", "definition"),
    [
        (AnyOf(WORKERS, SURVIVES), _any_of),
        (FirstHolder(WORKERS, turn=TURN), _first_holder),  # type: ignore[arg-type]
        (OneOfEach(GROUPS), _one_of_each),
    ],
)
def test_a_block_is_there_when_its_rule_says_so(rule: Any, definition: Any) -> None:
    finish = np.random.default_rng(0).exponential(1.0, (3, 2, TURN.size, WORKERS))
    finish[0, 0, :, :2] = finish[2, 1, 1] = np.inf  # two who never answer, and a task that nobody does
    found = rule.blocks(finish, BLOCK)
    assert isinstance(found, np.ndarray)
    want = [[definition(one) for one in row] for row in finish]
    np.testing.assert_array_equal(found, want)
    compiled = jax.jit(lambda times: rule.blocks(times, BLOCK))(finish.astype(np.float32))
    np.testing.assert_array_equal(compiled, np.array(want, np.float32))
    assert jnp.isinf(compiled).any()
