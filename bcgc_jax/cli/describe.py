"""Distributions, problems and statuses as plain values."""

import dataclasses
from typing import Any

import numpy as np

from bcgc_jax.cli.arguments import law_name
from bcgc_jax.cli.output import Row, finite
from bcgc_jax.distributions import Distribution, JointDistribution
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution


def num_workers(problem: Problem) -> int:
    return int(np.asarray(problem.num_workers))


def status_name(solution: Solution) -> str:
    return Status(int(solution.status)).name.lower()


def describe_law(law: Distribution | JointDistribution) -> Any:
    """Describe a distribution in JSON's own values, null where a number is infinite.

    Workers that are not alike have a list of them.
    """
    if laws := law.members():
        return [describe_law(member) for member in laws]
    numbers = law.summary()
    plain = {
        name: a if isinstance(a, str | int) else finite(a)
        for name, a in numbers.items()
    }
    return {"distribution": law_name(type(law)), **plain}


def describe_problem(problem: Problem) -> Row:
    """Numbers and distributions in JSON's values, without what was not asked for."""
    described = {
        field.name: getattr(problem, field.name)
        for field in dataclasses.fields(problem)
    }
    del described["max_workers"]
    described["overlap"] = problem.overlap or None
    return {
        name: describe_law(value)
        if hasattr(value, "summary")
        else np.asarray(value).tolist()
        for name, value in described.items()
        if value is not None
    }
