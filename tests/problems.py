"""Problems of one shape for all tests, so that they share what is compiled for them."""

from inspect import ismodule
from typing import Any, TypeVar

import pytest
from jax import Array
from jax.typing import ArrayLike

import bcgc_jax as bcgc
from bcgc_jax.plans.completion import AnyOf
from bcgc_jax.plans.evaluate import expected_completion
from bcgc_jax.plans.groups import Groups
from bcgc_jax.plans.worker import Load, Worker

T = TypeVar("T")

# What all are padded to: programs differ in the kind of law and the precision alone.
SIZE = 12


def padded(
    law: bcgc.distributions.Distribution,
    num_workers: int,
    coordinates: int = 20_000,
    samples: float = 1.0,
    cycles: float = 1.0,
) -> bcgc.Problem:
    """Too many coordinates for the search over whole units, another program."""
    return bcgc.Problem(
        law, num_workers, coordinates, float(samples), float(cycles), max_workers=SIZE
    )


def expected_max(
    law: bcgc.distributions.Distribution, load: Array, num_workers: ArrayLike
) -> bcgc.plans.Expectation:
    """E max_n load_n T_(N-n)."""
    return expected_completion(Worker(law), Load(load), AnyOf(num_workers))


def not_none(value: T | None) -> T:
    """`value`, where a solution may have None."""
    assert value is not None
    return value


def slow(*cases: Any) -> list[Any]:
    """Cases of a test for the slow tier."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


_SUBJECTS = (
    bcgc.coding,
    bcgc.distributions,
    bcgc.diagnosis,
    bcgc.traces,
    bcgc.plans,
    bcgc.solvers,
    bcgc.sweeps,
)
# All public names, those of the subjects too.
NAMES = {*bcgc.__all__}
for _subject in _SUBJECTS:
    members = {
        name
        for name, value in vars(_subject).items()
        if name[0] != "_" and not ismodule(value)
    }
    NAMES |= {*getattr(_subject, "__all__", members)}
NAMES -= {subject.__name__.rpartition(".")[2] for subject in _SUBJECTS}


def nested_groups(sizes: tuple[int, ...], num_workers: int) -> Groups:
    """Neighbours in groups of each size; a size divides the next, the last one N."""
    return tuple(
        tuple(
            tuple(range(first, first + size)) for first in range(0, num_workers, size)
        )
        for size in sizes
    )
