"""`bcgc solve` of many workers takes the smooth steps that Python takes, and prints the time of these."""

import threading

import pytest

from bcgc_jax import Problem
from bcgc_jax.distributions import ShiftedExponential
from bcgc_jax.solvers import many_workers


class Reached(Exception):
    pass


def test_the_problem_of_the_command_is_one_of_many_workers(command, monkeypatch):
    problems = []

    def solve(problem, *args, **options):
        problems.append(problem)
        raise ValueError("enough")

    monkeypatch.setattr("bcgc_jax.cli.solve.solve", solve)
    law = "shifted-exponential:rate=1e-3,shift=50"
    for workers in ("401", "1000"):
        args = ["--workers", workers, "--coordinates", "1000000", "--cycle-time", law, "--method", "optimal"]
        status, _, told = command("solve", *args)
        assert (status, "enough" in told) == (2, True)
    assert all(map(many_workers.is_of_many, problems))
    assert {problem.max_workers for problem in problems} == {401, 1000}


def test_sums_compile_in_the_thread_whose_time_is_taken(monkeypatch):
    threads = []

    def sums(*args):
        threads.append(threading.current_thread())
        raise Reached

    monkeypatch.setattr(many_workers, "_sums", sums)
    problem = Problem(ShiftedExponential(1e-3, 50.0), 401, 1_000_000)
    with pytest.raises(Reached):
        many_workers.optimum_of_many(problem, tolerance=1e-7, max_steps=60)
    assert threads == [threading.current_thread()]
