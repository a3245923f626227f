"""The loop of many problems against the same loop, one problem after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.solvers.newton import loop


def _collatz(steps_at_a_time: int):
    """Steps of 3n + 1 from n to the target, one at a time in lanes: (number of steps, largest n)."""

    def step(target, state):
        n, steps, largest = state
        n = jnp.where(n % 2 == 0, n // 2, 3 * n + 1)
        return n, steps + 1, jnp.maximum(largest, n)

    def many(target, state):
        for _ in range(steps_at_a_time):
            open_ = state[0] != target
            state = jax.tree.map(lambda a, b, c=open_: jnp.where(c, a, b), step(target, state), state)
        return state

    def run(n, target, lanes):
        n = jnp.asarray(n)
        return loop(
            lambda target, s: s[0] != target,
            lambda size: many if size == 1 else step,
            lambda _, s: s[1:],
            target,
            (n, 0 * n, n),
            lanes=(lanes, lanes + 5),  # the second is for other machines than this one
        )

    return run


def _by_hand(n: int, target: int) -> tuple[int, int]:
    steps, largest = 0, n
    while n != target:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps, largest = steps + 1, max(largest, n)
    return steps, largest


@pytest.mark.parametrize("lanes", [1, 3, 40])
def test_each_problem_has_its_own_number_of_rounds(lanes):
    starts = np.array([6, 1, 27, 9, 1, 7, 97, 2, 3, 15, 1])
    run = _collatz(2)
    steps, largest = jax.jit(jax.vmap(lambda n: run(n, 1, lanes)))(starts)
    expected = [_by_hand(int(n), 1) for n in starts]
    np.testing.assert_array_equal(np.stack([steps, largest], axis=1), expected)
    one = jax.jit(lambda n: run(n, 1, lanes))
    np.testing.assert_array_equal([one(int(n)) for n in starts], expected)


def test_constants_may_be_batched_and_batches_nested():
    starts, targets = np.array([[12, 7], [3, 11], [13, 6]]), np.array([1, 4])
    run = _collatz(1)
    steps, _ = jax.vmap(jax.vmap(lambda n, t: run(n, t, 2)), in_axes=(0, None))(starts, targets)
    expected = [[_by_hand(int(n), int(t))[0] for n, t in zip(row, targets, strict=True)] for row in starts]
    np.testing.assert_array_equal(steps, expected)
    steps, _ = jax.vmap(lambda t: run(40, t, 2))(np.array([1, 40, 10]))
    np.testing.assert_array_equal(steps, [_by_hand(40, t)[0] for t in (1, 40, 10)])
