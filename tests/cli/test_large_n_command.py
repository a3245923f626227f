"""`bcgc solve` of many workers prints the time of its steps, without that of compiling them."""

import threading

import pytest

from bcgc_jax import Problem
from bcgc_jax.distributions import ShiftedExponential
from bcgc_jax.solvers import large_n


class Reached(Exception):
    pass


def test_sums_compile_in_the_thread_whose_time_is_taken(monkeypatch):
    threads = []

    def sums(*args):
        threads.append(threading.current_thread())
        raise Reached

    monkeypatch.setattr(large_n, "_sums", sums)
    problem = Problem(ShiftedExponential(1e-3, 50.0), 401, 1_000_000)
    with pytest.raises(Reached):
        large_n.optimum_of_many(problem, tolerance=1e-7, max_steps=60)
    assert threads == [threading.current_thread()]
