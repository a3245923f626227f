"""Partitions against Theorem 1 by brute force, active sets, rounding's definition."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from tests.oracles import exact as oracles


@pytest.mark.parametrize(("num_workers", "num_coordinates"), [(1, 3), (4, 4)])
def test_levels_are_the_first_to_reach_the_rank_of_their_coordinate(
    num_workers, num_coordinates
):
    ranks = range(1, num_coordinates + 1)
    candidates = itertools.product(range(num_coordinates + 1), repeat=num_workers)
    partitions = [x for x in candidates if sum(x) == num_coordinates]
    ends = [np.cumsum(x) for x in partitions]
    expected = [
        [next(i for i in range(num_workers) if e[i] >= k) for k in ranks] for e in ends
    ]
    to_levels = functools.partial(
        bcgc.levels_from_partition, num_coordinates=num_coordinates
    )
    result = np.asarray(jax.vmap(to_levels)(np.array(partitions)))
    np.testing.assert_array_equal(result, expected)
    # The map is one to one onto the ascending levels, and undone by the count, whatever
    # their order.
    ascending = list(
        itertools.combinations_with_replacement(range(num_workers), num_coordinates)
    )
    np.testing.assert_array_equal(np.unique(result, axis=0), ascending)
    shuffled = np.random.default_rng(7).permuted(result, axis=1)
    to_partition = functools.partial(
        bcgc.partition_from_levels, num_workers=num_workers
    )
    np.testing.assert_array_equal(jax.vmap(to_partition)(shuffled), partitions)


def test_levels_of_a_partition_of_fractions_follow_the_same_rule(precision):
    x = np.asarray([1.4, 0.0, 2.2, 0.3, 3.1], precision)
    expected = [
        next(i for i in range(5) if x[: i + 1].sum() >= rank) for rank in range(1, 8)
    ]
    np.testing.assert_array_equal(bcgc.levels_from_partition(x, 7), expected)


def test_levels_never_leave_the_levels_in_use_where_rounding_makes_the_sum_too_small(
    precision,
):
    third = np.nextafter(precision.type(10 / 3), precision.type(0))
    x = np.asarray([third, third, third, 0.0], precision)
    np.testing.assert_array_equal(
        bcgc.levels_from_partition(x, 10), [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    )


def test_a_level_that_is_not_used_ends_with_the_last_one_before(x64):
    x = np.array([0.0, 3.0, 0.0, 2.0, 0.0])
    setup = 0.7
    chain = 0.3
    used = np.array([False, True, False, True, False])
    expected = []
    last = 0.0
    for n in range(5):
        if used[n]:
            last = sum((i + 1) * x[i] for i in range(n + 1)) + (n + 1) * (
                setup + chain * x[: n + 1].sum()
            )
        expected.append(last)
    load = bcgc.plans.partitions.finish_load(x, used, setup, chain)
    np.testing.assert_allclose(load, expected, rtol=1e-14)


def test_projection_is_the_best_over_all_active_sets(x64):
    rng = np.random.default_rng(11)
    project = jax.jit(jax.vmap(bcgc.plans.partitions.project_partition, (0, 0, 0)))
    for scale in (0.01, 1.0, 30.0):
        values = rng.normal(0, scale, (60, 5))
        total = rng.uniform(0.3, 7.0, 60)
        num_workers = rng.integers(1, 6, 60)
        result = np.asarray(project(values, total, np.arange(5) < num_workers[:, None]))
        for x, v, t, n in zip(result, values, total, num_workers, strict=True):
            expected = oracles.project_by_active_sets(v[:n], t)
            # Worst measured 9e-15.
            np.testing.assert_allclose(x[:n], expected, rtol=0, atol=3e-14)
            np.testing.assert_array_equal(x[n:], 0)


@pytest.mark.parametrize(
    ("total", "dtype"),
    [
        *((7, np.float64), (20_000, np.float64), (20_000, np.float32)),
        # There float32 has no fractions.
        *((100_000_007, np.float32), (1_000_000_000, np.float32)),
    ],
)
def test_rounded_partition_sums_exactly_and_stays_within_one_or_the_spacing_of_numbers(
    total, dtype
):
    rng = np.random.default_rng(total)
    x = np.zeros((300, 24))
    for row in x:  # over 3 to 20 levels, the last two are padding
        used = rng.choice(22, rng.integers(3, 21), replace=False)
        row[used] = rng.dirichlet(np.full(used.size, 0.4)) * total
    x = x.astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        result = np.asarray(
            jax.jit(jax.vmap(bcgc.plans.partitions.round_partition, (0, None)))(
                x, total
            )
        )
    assert np.issubdtype(result.dtype, np.integer)
    np.testing.assert_array_equal(result.sum(axis=1, dtype=np.int64), total)
    # Half of a spacing for each of the 20 levels.
    assert np.abs(result - x.astype(float)).max() < max(
        1, 10 * np.spacing(dtype(total))
    )
    np.testing.assert_array_equal(result[x == 0], 0)
    assert (result >= 0).all()
    # Largest remainder: nobody rounded down has a larger remainder than somebody
    # rounded up.
    remainder = x - np.floor(x)
    up = result > np.floor(x)
    smallest_up = np.where(up, remainder, np.inf).min(axis=1)
    largest_down = np.where(~up & (x > 0), remainder, -np.inf).max(axis=1)
    assert (smallest_up >= largest_down).all() or total > 20_000


def test_rounding_repairs_a_sum_that_is_off_by_rounding(precision):
    x = np.asarray([2.0, 0.0, 3.0, 5.0], precision)
    below, above = (np.nextafter(x, precision.type(v)) for v in (-1, 100))
    for near in (np.where(x > 0, below, 0), np.where(x > 0, above, 0)):
        rounded = bcgc.plans.partitions.round_partition(
            jnp.asarray(near, precision), 10
        )
        np.testing.assert_array_equal(rounded, x)


@pytest.mark.parametrize("far", [0.0, 1e2, 1e5])
def test_a_projection_from_far_away_is_on_the_simplex_in_single_precision(far):
    values = np.array([0.5, 0.3, 0.2, 0.0], np.float32) * 2 - np.float32(far)
    projection = np.asarray(
        bcgc.plans.partitions.project_partition(values, 1.0, np.arange(4) < 3)
    )
    assert projection.sum() == pytest.approx(1.0, abs=1e-6)
    # c - λ on the support, by hand; a value as far as 1e5 has lost its digits, but not
    # the others' sum.
    if far < 1e3:
        np.testing.assert_allclose(
            projection, [0.666667, 0.266667, 0.066667, 0.0], atol=3e-5
        )
