"""What a problem accepts and refuses, what it derives, and how it behaves as a tree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax._pytree import replace
from bcgc_jax.plans.iterations import iteration_of

LAW = bcgc.ShiftedExponential(rate=0.02, shift=5.0)
UNLIKE = bcgc.Heterogeneous([LAW] * 4)
SENSIBLE: dict[str, Any] = dict(
    cycle_time=LAW, num_workers=4, num_coordinates=30, num_samples=5, cycles=1.5
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("num_workers", v) for v in (0, np.nan, np.inf)],
        *[("num_coordinates", v) for v in (0, 10.5, np.nan, np.inf)],
        *[
            (name, v)
            for name in ("num_samples", "cycles")
            for v in (0, -3.0, np.nan, np.inf)
        ],
        *[
            (name, v)
            for name in ("send_time", "chain_cycles", "start_up")
            for v in (-1.0, np.nan, np.inf)
        ],
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_name_and_value(name, value):
    bcgc.Problem(**SENSIBLE)
    with pytest.raises(ValueError, match=name) as caught:
        bcgc.Problem(**{**SENSIBLE, name: value})
    assert str(value) in str(caught.value)


def test_a_setup_and_a_chain_are_paid_for_also_where_there_is_one_of_them():
    law = bcgc.distributions.Deterministic(2.0)
    for setup, chain in ((None, None), (6.0, None), (None, 0.3), (6.0, 0.3)):
        problem = bcgc.Problem(
            law, 1, 30, 5, 1.5, setup_cycles=setup, chain_cycles=chain
        )
        cycles = 1.5 * 30 + (setup or 0) + (chain or 0) * 30
        runtime = bcgc.expected_runtime(problem, jnp.array([30.0]))
        np.testing.assert_allclose(runtime, 2.0 * 5 * cycles, rtol=1e-5)
        assert problem.has_setup == (setup is not None or chain is not None)
        # One worker has nobody to share the passes with: it takes the limit.
        np.testing.assert_allclose(
            bcgc.solve(problem, "limit").expected_runtime, runtime, rtol=1e-5
        )
        if problem.has_setup:
            with pytest.raises(ValueError, match=r"setup|chain"):
                bcgc.solve(problem, bcgc.Deadline(500.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": [4, 0]}, r"num_workers must be finite and >= 1, got 0"),
        ({"num_workers": 2.5}, r"num_workers must be an integer, got 2.5"),
        ({"num_workers": "four"}, r"num_workers must be a number, got 'four'"),
        (
            {"cycle_time": 3.0},
            r"cycle_time must be a distribution, got 3.0. Pass, .* ShiftedExponential",
        ),
        ({"start_up": LAW}, "start_up must be a number, got ShiftedExponential"),
        ({"start_up": UNLIKE}, "start_up must be a number, got Heterogeneous"),
        (
            {"send_time": 1.0, "overlap": 2},
            "overlap must be True or False and known before tracing, got 2",
        ),
        (
            {"num_workers": np.array([3, 9]), "max_workers": 8},
            r"num_workers 9 exceeds max_workers 8",
        ),
    ],
)
def test_the_message_says_what_would_be_right(arguments, message):
    with pytest.raises(ValueError, match=message):
        bcgc.Problem(**{**SENSIBLE, **arguments})


def test_a_problem_knows_what_delivery_leaves():
    problem = bcgc.Problem(
        **SENSIBLE, start_up=3.0, overlap=True, send_time=0.5, chain_cycles=0.2
    )
    assert not problem.plain
    assert not iteration_of(problem).smooth
    assert repr(problem.without_delivery) == repr(
        bcgc.Problem(**SENSIBLE, chain_cycles=0.2)
    )


def test_more_coordinates_than_an_integer_holds_need_64_bit():
    with pytest.raises(ValueError, match="jax_enable_x64"):
        bcgc.Problem(LAW, 4, 3_000_000_000)
    bcgc.Problem(LAW, 4, 2_000_000_000)
    with jax.enable_x64(True):
        assert float(bcgc.Problem(LAW, 4, 3_000_000_000).total) == 3e9


def test_max_workers_is_the_largest_number_of_workers_and_a_traced_one_needs_it():
    assert bcgc.Problem(LAW, 6, 30).max_workers == 6
    assert bcgc.Problem(LAW, jnp.array([3, 11, 7]), 30).max_workers == 11
    assert bcgc.Problem(LAW, 6, 30, max_workers=9).max_workers == 9

    def total(workers, **bound):
        return bcgc.Problem(LAW, workers, 30, **bound).exists.sum()

    with pytest.raises(ValueError, match="static max_workers"):
        jax.jit(total)(4)
    assert jax.jit(lambda n: total(n, max_workers=9))(4) == 4


def test_scale_total_and_levels_are_what_equation_5_says(precision):
    problem = bcgc.Problem(LAW, 6, 90, num_samples=14.0, cycles=1.3, max_workers=8)
    assert problem.dtype == precision
    assert problem.scale.dtype == problem.total.dtype == precision
    np.testing.assert_allclose(
        problem.scale, 14 * 1.3 / 6, rtol=2 * np.finfo(precision).eps
    )
    assert float(problem.total) == 90
    assert problem.exists.tolist() == [True] * 6 + [False] * 2


def test_a_problem_is_a_tree_whose_static_part_is_max_workers():
    problem = bcgc.Problem(LAW, 6, 90, 14.0, 1.3, max_workers=8)
    leaves, tree = jax.tree.flatten(problem)
    larger_tree: Any = jax.tree.structure(
        bcgc.Problem(LAW, 6, 90, 14.0, 1.3, max_workers=9)
    )
    assert leaves == [0.02, 5.0, 6, 90, 14.0, 1.3]
    copy = jax.tree.unflatten(tree, leaves)
    assert (copy.max_workers, copy.num_workers, copy.cycle_time.shift) == (8, 6, 5.0)
    assert tree != larger_tree
    # Whatever JAX puts into a tree passes: the checks are for what a person passes.
    assert jax.tree.map(lambda leaf: -leaf, problem).num_workers == -6


def test_more_workers_in_a_copy_have_room():
    problem = bcgc.Problem(LAW, 4, 90)
    assert dataclasses.replace(problem, num_workers=6).max_workers == 6
    # Fewer keep the shape of the partitions, as another problem does that is made with
    # the same room.
    assert replace(problem, num_workers=2).max_workers == 4
    with pytest.raises(ValueError, match="num_workers 9 exceeds max_workers 8"):
        replace(bcgc.Problem(LAW, 4, 90, max_workers=8), num_workers=9)
    two, three = (
        bcgc.Heterogeneous([bcgc.Uniform(1.0, 2.0)] * workers) for workers in (2, 3)
    )
    assert (
        replace(bcgc.Problem(two, 2, 90), cycle_time=three, num_workers=3).max_workers
        == 3
    )
    with_room = bcgc.Problem(LAW, 4, 90, max_workers=4)
    assert len({jax.tree.structure(problem), jax.tree.structure(with_room)}) == 1


def test_every_status_says_in_words_what_happened():
    messages = [status.message for status in bcgc.Status]
    assert len(set(messages)) == len(messages) == 6
    assert "max_steps" in bcgc.Status.STEP_LIMIT.message
    assert "deadline" in bcgc.Status.INFINITE.message
    assert "NaN" in bcgc.Status.INVALID.message
    assert (
        bcgc.Status(int(jnp.asarray(bcgc.Status.INFEASIBLE))) is bcgc.Status.INFEASIBLE
    )
