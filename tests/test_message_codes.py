"""Codes for short messages: what can be decoded, how well, and that no code is missing."""

import itertools

import numpy as np
import pytest

from bcgc_jax.message_codes import MAX_CONDITION, message_code, message_codes, worst_condition


@pytest.mark.parametrize("workers", range(1, 9))
def test_any_set_gives_the_parts_back_and_neighbours_are_the_worst(workers):
    for parts in range(1, workers + 1):
        code = message_code(workers, parts)
        np.testing.assert_allclose(np.sum(code**2, axis=1), 1)
        sets = itertools.combinations(range(workers), parts)
        worst = max(float(np.linalg.cond(code[list(chosen)])) for chosen in sets)
        assert worst == pytest.approx(worst_condition(workers, parts), rel=1e-12)


@pytest.mark.parametrize("workers", [3, 10, 50])
def test_conditions_that_have_a_formula(workers):
    assert worst_condition(workers, 1) == pytest.approx(1)
    assert worst_condition(workers, 2) == pytest.approx(1 / np.tan(np.pi / 2 / workers))
    assert worst_condition(workers, workers - 1) == pytest.approx(np.sqrt(workers))
    assert worst_condition(workers, workers) == 1


def _by_hand(num_workers, max_condition, sharded):
    """All codes, as (tolerance, parts, work)."""
    found = {(level, 1, level + 1) for level in range(num_workers)}
    for work in range(1, num_workers + 1):
        for classes in range(1, work + 1):
            if num_workers % work or work % classes:
                continue
            size = work // classes
            conditions = [np.linalg.cond(message_code(size, m)[:m]) for m in range(1, size + 1)]
            found |= {
                (size - m, classes * m, size if sharded else work)
                for m in range(1, size + 1)
                if conditions[m - 1] < max_condition
            }
    return found


@pytest.mark.parametrize("num_workers", [1, 4, 12, 20])
@pytest.mark.parametrize("max_condition", [1.0001, MAX_CONDITION])
@pytest.mark.parametrize("sharded", [False, True])
def test_the_codes_are_those_that_none_is_as_good_as(num_workers, max_condition, sharded):
    codes = message_codes(num_workers, max_condition, sharded=sharded)
    kept = set(zip(codes.tolerance.tolist(), codes.parts.tolist(), codes.work.tolist(), strict=True))
    assert len(kept) == len(codes.work)
    every = _by_hand(num_workers, max_condition, sharded)
    assert kept <= every

    def as_good(one, other):
        return one[0] >= other[0] and one[1] >= other[1] and one[2] <= other[2]

    for code in every:
        better = {one for one in every if as_good(one, code)}
        assert (code in kept) == (better == {code})
        assert any(as_good(one, code) for one in kept)
    # Ye & Abbe's bound, met where there is one class; what is sharded is no whole gradient.
    assert np.all(codes.tolerance + codes.parts <= codes.stored)
    assert sharded or np.array_equal(codes.work, codes.stored)
    one_class = codes.classes == 1
    assert np.all((codes.tolerance + codes.parts == codes.stored)[one_class])


def test_what_workers_do_not_store_is_left_out():
    codes = message_codes(20, most_stored=5)
    assert codes.stored.max() == 5
    assert codes.tolerance.max() == 4


def test_float32_messages_of_each_code_give_the_sum_back():
    """Workers' messages of a block, from the gradients of their subsets to the sum over all."""
    codes, rng = message_codes(20), np.random.default_rng(0)
    worst = 0.0
    columns = (codes.tolerance, codes.parts, codes.stored, codes.classes)
    for s, m, d, q in zip(*(a.tolist() for a in columns), strict=True):
        if m == 1:
            continue
        gradients = rng.normal(size=(20, m, 7)).astype(np.float32)  # subset, part, coordinate
        size, own = d // q, m // q
        code = message_code(size, own).astype(np.float32)
        total = np.zeros((m, 7))
        for group in gradients.reshape(20 // d, d, m, 7):
            parts = group.sum(axis=0)
            for c in range(q):
                messages = code @ parts[c * own : (c + 1) * own]
                come = rng.choice(size, size - s, replace=False)
                total[c * own : (c + 1) * own] += np.linalg.solve(code[come], messages[come])
        exact = gradients.astype(float).sum(axis=0)
        worst = max(worst, float(np.max(np.abs(total - exact)) / np.sqrt(np.mean(exact**2))))
    assert worst < 5e-6  # measured 7e-7


def test_what_makes_no_code_is_refused():
    with pytest.raises(ValueError, match="max_condition must be >= 1"):
        message_codes(4, 0.5)
    with pytest.raises(ValueError, match="workers must be a whole number from 3"):
        message_code(2, 3)
    with pytest.raises(ValueError, match="most_stored must be a whole number from 1"):
        message_codes(4, most_stored=0)
