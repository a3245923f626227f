"""Public computations become programs for CUDA, ROCm and TPU, in float32 without float64 or complex."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, export

import bcgc_jax as bcgc
from bcgc_jax import partitions
from bcgc_jax.schedules import Group, schedule_of, simulate_schedule
from tests.test_second_calls import LAWS as OF_NUMBERS

ELSEWHERE = ("cuda", "rocm", "tpu")
# Three workers and six levels of load: the sizes change no operation.
X = np.array([400.0, 600.0, 1000.0], np.float32)
# What a TPU has no arithmetic for; XLA writes float64 in software, far slower.
_LACKING = re.compile(r"complex<|[<x]f64>")


def _unit(v: Any) -> Array:
    return v * jnp.array([1.0, 2.0, 3.0])


# Those of numbers alone as they are; others of arrays, which may be traced.
LAWS: dict[str, Callable[[Any], Any]] = {
    name: OF_NUMBERS[name]
    for name in (
        *("ShiftedExponential", "Exponential", "Deterministic", "Weibull", "Pareto", "Uniform", "TwoSpeed"),
        *("Lognormal", "Gamma"),
    )
} | {
    "Empirical": lambda v: bcgc.Empirical(_unit(v)),
    "Pairs": lambda v: bcgc.Pairs(_unit(v) - v, _unit(v)),
    "HazardSpline": lambda v: bcgc.HazardSpline(
        jnp.array([0.0, 0.5, 1.0]), _unit(v), jnp.full(3, 2.0) * v, 0.1
    ),
    "Rows": lambda v: bcgc.Rows(jnp.stack([_unit(v), _unit(2 * v)])),
    "Unlike": lambda v: bcgc.Unlike([bcgc.Uniform(v, 4.0 * v), bcgc.Pareto(v, 3.0), bcgc.Exponential(v)]),
}
WITHOUT_DENSITY = ("Empirical", "Pairs", "Deterministic", "TwoSpeed", "Rows", "Unlike")


def _of_law(name: str, v: Any, key: Array) -> Any:
    law, times = LAWS[name](v), jnp.linspace(0.5, 4.0, 5)
    problem = bcgc.Problem(law, 3, 2000)
    found = [law.mean(), law.infimum(), law.sample(key, (4, 3)), bcgc.simulate_runtime(key, problem, X, 64)]
    if name != "Unlike":
        found.append(bcgc.expected_runtime(problem, X))
    if name not in ("Rows", "Unlike", "Pairs"):
        found += [law.cdf(times), law.survival(times), law.inverse_cumulative_hazard(times)]
        found.append(bcgc.sorted_cycle_times(key, law, 3, 4))
    if name not in WITHOUT_DENSITY:
        found.append(law.log_density(times))
    return found


def _problem(v: Any, **given: Any) -> bcgc.Problem:
    return bcgc.Problem(bcgc.ShiftedExponential(v, 0.5), 3, 2000, 2.0 * v, **given)


def _late(v: Any) -> bcgc.Problem:
    return _problem(v, start_up=bcgc.Exponential(v), send_time=0.5, chain_cycles=0.2)


def _runtimes(v: Any, key: Array) -> Any:
    problem = _problem(v)
    return (
        jax.value_and_grad(lambda x: bcgc.expected_runtime(problem, x))(X),
        bcgc.integrate_runtime(problem, X),
        bcgc.certificate(problem, X),
        bcgc.completion_probability(problem, X, 10 * v),
        bcgc.simulate_runtime(key, problem, X, 64),
        bcgc.block_runtime(X * v, X[::-1], start_ups=X * v, send_time=v),
        bcgc.coordinate_runtime(np.array([0, 1, 2]), X * v),
        bcgc.runtime_limit(problem),
        bcgc.straggler_ratio(problem.cycle_time),
        bcgc.expected_order_statistics(bcgc.Gamma(v, 1.0), 3),
    )


def _late_runtimes(v: Any, key: Array) -> Any:
    problem = _late(v)
    return (
        bcgc.expected_runtime(problem, X),
        bcgc.completion_probability(problem, X, 4e3 * v),
        bcgc.simulate_runtime(key, problem, X, 64),
    )


def _on_coordinates(v: Any, key: Array) -> Any:
    del key
    whole = partitions.round_partition(X * v, 2000)
    return (
        bcgc.levels_from_partition(jnp.asarray(v * X, int), num_coordinates=2000),
        bcgc.partition_from_levels(jnp.asarray(v * np.arange(3.0), int), num_workers=3),
        partitions.project_partition(X * v, 4.0, 2),
        partitions.cumulative_load(X * v),
        whole,
    )


def _schedule(v: Any, key: Array) -> Any:
    schedule = schedule_of([Group(1, 1), Group(2, 2)], jnp.array([500.0, 700.0, 800.0]))
    return simulate_schedule(key, _late(v), schedule, 64)


METHODS = [
    *("optimal", "time", "frequency", "subgradient", "uncoded", "single_block", "tandon_partial", "limit"),
    *("ferdinand_full", "ferdinand_half", "cyclic:2", "alternating:2:3", "groups:3", "backup:1", "sharing:4"),
    pytest.param("credit:2", marks=pytest.mark.slow),
]
CALLS: dict[str, Callable[[Any, Array], Any]] = {
    "runtimes": _runtimes,
    "runtimes of workers that start late": _late_runtimes,
    "partitions": _on_coordinates,
    "schedules": _schedule,
    "a sweep": lambda v, key: jax.vmap(lambda u: bcgc.solve(_problem(u)).partition)(
        v * jnp.linspace(1, 2, 64)
    ),
    "the slope of an optimum": lambda v, key: jax.grad(lambda u: bcgc.solve(_problem(u)).expected_runtime)(v),
    "the optimum of a law of atoms": lambda v, key: (
        bcgc.solve(bcgc.Problem(bcgc.Empirical(_unit(v)), 3, 2000)).partition
    ),
    "the optimum for workers that send": lambda v, key: bcgc.solve(_problem(v, send_time=0.5)).partition,
    "the optimum for a deadline": lambda v, key: bcgc.solve(_problem(v), bcgc.Deadline(8e3)).partition,
}


def _lowers(function: Callable[[Any, Array], Any]) -> None:
    with jax.enable_x64(False):
        program = jax.jit(function)
        given = jnp.float32(1.2), jax.random.key(0)
        for platform in ELSEWHERE:
            text = export.export(program, platforms=[platform])(*given).mlir_module()
            assert not _LACKING.search(text), platform
            assert "callback" not in text, platform


@pytest.mark.parametrize("name", LAWS)
def test_a_law_lowers_for_accelerators(name):
    _lowers(lambda v, key: _of_law(name, v, key))


@pytest.mark.parametrize("name", CALLS)
def test_a_computation_lowers_for_accelerators(name):
    _lowers(CALLS[name])


@pytest.mark.parametrize("method", METHODS)
def test_a_method_lowers_for_accelerators(method):
    def solved(v: Any, key: Array) -> Any:
        found = bcgc.solve(_problem(v), method, key=key)
        return found.partition, found.expected_runtime, found.rounded

    _lowers(solved)


@pytest.mark.slow
def test_the_optimum_for_workers_that_start_late_lowers_for_accelerators():
    _lowers(lambda v, key: bcgc.solve(_late(v)).partition)


def test_a_tpu_would_be_seen_to_lack_something():
    with jax.enable_x64(True):
        text = export.export(jax.jit(lambda v: jnp.sqrt(v)), platforms=["tpu"])(np.float64(2.0)).mlir_module()
    assert _LACKING.search(text)
    twist = jax.jit(lambda v: jnp.abs(jax.lax.complex(v, v)))
    assert _LACKING.search(export.export(twist, platforms=["tpu"])(jnp.float32(1.0)).mlir_module())


def test_no_program_depends_on_where_it_is_traced():
    """Programs are exported for other machines than those that trace them."""
    root = Path(bcgc.__file__).parent
    asking = [path.name for path in root.rglob("*.py") if "default_backend" in path.read_text("utf-8")]
    assert asking == []
