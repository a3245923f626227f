"""Public names keep their caller's dtype, compile once, and lower for accelerators."""

import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import bcgc_jax as bcgc
from bcgc_jax._pytree import working_dtype
from bcgc_jax.exact.order_statistics import simulate_max
from bcgc_jax.plans.marks import marks_of
from bcgc_jax.solvers import smooth_model
from tests import registry
from tests.compilations import compilations
from tests.problems import NAMES
from tests.registry import (
    CALLS,
    JOINT,
    KEY,
    KINDS,
    LAWS,
    ON_THE_HOST,
    WHOLE_NUMBERS,
    row,
)

OF_LAWS = {name: functools.partial(registry.of_law, name) for name in LAWS}
RUNTIMES = {
    f"runtimes of {name}": functools.partial(registry.runtimes_of_law, name)
    for name in KINDS
}
TRACED: dict[str, Callable[[Any], Any]] = OF_LAWS | RUNTIMES | CALLS
_CALLED = {n: call for n, call in CALLS.items() if n not in registry.ONLY_TRACED}
_LAWS = {name: OF_LAWS[name] for name in (*KINDS, "FromHazard")}
EAGER: dict[str, Callable[[Any], Any]] = _LAWS | ON_THE_HOST | _CALLED


@pytest.mark.smoke
def test_every_public_name_is_called_here_or_in_the_tests_of_codes():
    called = {
        name.split()[0] for name in (LAWS | registry.METHODS | CALLS | ON_THE_HOST)
    }
    called |= registry.TAKEN_OR_RETURNED | registry.OF_CODES
    for methods in (registry.of_law, registry.runtimes_of_law):
        called |= set(
            jax.eval_shape(lambda methods=methods: methods("Exponential", 1.25))
        )
    assert called >= NAMES


def _dtypes(tree: Any) -> dict[str, str]:
    """Return the dtypes of floating results, by where they stand."""
    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path): str(leaf.dtype)
        for path, leaf in named
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    }


def _check(tree: Any, name: str, dtype: str) -> None:
    dtypes = _dtypes(tree)
    assert {path: kind for path, kind in dtypes.items() if kind != dtype} == {}
    assert bool(dtypes) != (name in WHOLE_NUMBERS)


@pytest.mark.smoke
@pytest.mark.parametrize("name", TRACED)
def test_single_precision_stays_single_where_64_bits_are_enabled(name, x64):
    _check(jax.eval_shape(lambda: TRACED[name](jnp.float32(1.25))), name, "float32")


@pytest.mark.parametrize("name", ["smooth_empirical", "bootstrap_interval"])
def test_so_does_what_is_measured(name, x64):
    _check(ON_THE_HOST[name](jnp.float32(1.25)), name, "float32")  # type: ignore[arg-type]


# One law of each kind, a solve and a runtime, for other interpreters and versions.
_SMOKE = (
    "ShiftedExponential",
    "Empirical",
    "EmpiricalRows",
    "solve Optimal",
    "certificate",
)


def _marked(
    names: Iterable[str], slow: tuple[str, ...], smoke: tuple[str, ...] = ()
) -> list[Any]:
    kinds = ((slow, pytest.mark.slow), (smoke, pytest.mark.smoke))
    return [
        pytest.param(name, marks=[mark for chosen, mark in kinds if name in chosen])
        for name in names
    ]


@pytest.mark.parametrize("name", _marked(EAGER, registry.SLOW_AT_FIRST, _SMOKE))
def test_no_function_is_compiled_twice(name):
    first = EAGER[name](1.25)
    with compilations() as compiled:
        EAGER[name](2.25)
    assert not compiled
    if name in TRACED:
        _check(first, name, "float32")


# What a TPU has no arithmetic for; XLA writes float64 in software, far slower.
_LACKING = re.compile(r"complex<|[<x]f64>")
_PRODUCT = re.compile(r"stablehlo\.(?:dot|dot_general|convolution)\b.*")


def _program(call: Callable[[Any], Any]) -> str:
    with jax.enable_x64(False):
        traced = export.export(jax.jit(call), platforms=["cuda", "rocm", "tpu"])(
            jnp.float32(1.25)
        )
    return traced.mlir_module()


def _check_products(program: str) -> None:
    """GPUs and TPUs round factors of float32 products below highest precision."""
    products = _PRODUCT.findall(program)
    assert [product for product in products if product.count("HIGHEST") != 2] == []


def _lowers(call: Callable[[Any], Any]) -> None:
    program = _program(call)
    assert not _LACKING.search(program)
    assert "callback" not in program
    _check_products(program)


# The others take half a second each, and are slow tests.
_OF_OTHER_KINDS = tuple(name for name in TRACED if name not in _SMOKE)


@pytest.mark.parametrize("name", _marked(TRACED, _OF_OTHER_KINDS))
def test_a_computation_lowers_for_accelerators(name):
    _lowers(TRACED[name])


def test_a_sweep_and_the_slope_of_an_optimum_lower_for_accelerators():
    def optimum(v: Any) -> bcgc.Solution:
        return bcgc.solve(registry.problem_of(v))

    _lowers(
        lambda v: jax.vmap(lambda u: optimum(u).partition)(v * jnp.linspace(1, 2, 64))
    )
    _lowers(jax.grad(lambda v: optimum(v).expected_runtime))


def test_products_of_what_runs_on_the_host_are_in_full_precision():
    def of_many(v: Any) -> Any:
        law, load, samples = LAWS["Uniform"](v), row(v, *range(1, 65)), jnp.arange(64)
        sums = smooth_model.sums_of_piece(
            law, marks_of(law, load, 64), load, samples, jnp.array(1), jnp.array(0)
        )
        slope, rows = sums[2][0], sums[3]
        return smooth_model.newton_direction(
            jnp.eye(64), samples, load, slope, load, v, v, rows
        )

    code = bcgc.coding.gradient_code(KEY, 4, 1)

    def coded(v: Any) -> Any:
        weights = bcgc.coding.decoding_weights(
            code.encoding, v * jnp.arange(4) < 3
        ).weights
        return bcgc.coding.decode(weights, bcgc.coding.encode(code, row(v, 1, 2, 3, 4)))

    for call in (of_many, coded):
        program = _program(call)
        assert _PRODUCT.search(program)
        _check_products(program)


def test_no_program_depends_on_where_it_is_traced():
    """Programs are exported for other machines than those that trace them."""
    root = Path(bcgc.__file__).parent
    asking = [
        path.name
        for path in root.rglob("*.py")
        if "default_backend" in path.read_text("utf-8")
    ]
    assert asking == []


def test_arrays_of_numpy_count_like_those_of_jax(x64):
    single = np.array([1.0, 2.0, 5.0], np.float32)
    for law in (bcgc.Empirical(single), bcgc.EmpiricalRows(single[None])):
        chex.assert_type(law.times, jnp.float32)
    problem = bcgc.Problem(bcgc.Uniform(1.0, 2.0), 3, 3, unit_costs=single)
    assert problem.dtype == problem.total.dtype == jnp.float32


def test_the_numbers_of_a_problem_are_weak_beside_a_partition(x64):
    def results(law: Any, dtype: Any) -> Any:
        problem, x = bcgc.Problem(law, 3, 10, 2.0), jnp.array([3.0, 2.0, 5.0], dtype)
        return [of(problem, x) for of in registry.OF_A_PARTITION.values()]

    for rate, dtype, expected in (
        (2.0, "float32", "float32"),
        (2.0, float, "float64"),
        (jnp.float64(2.0), "float32", "float64"),
    ):
        law = bcgc.ShiftedExponential(rate, 0.5)
        shapes = jax.eval_shape(lambda law=law, dtype=dtype: results(law, dtype))
        assert {*_dtypes(shapes).values()} == {expected}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in LAWS
        if name not in ("HazardSpline", *JOINT, "Empirical", "Mixture")
    ],
)
def test_the_numbers_of_a_law_are_weak_beside_a_time(name, x64):
    time = jnp.float32(1.5)

    def values(law: Any) -> Any:
        # Gamma's fast inverse is a table.
        fast = law if name == "Gamma" else law.with_fast_inverse()
        return registry.of_time(name, law, time), fast.inverse_cumulative_hazard(time)

    _check(jax.eval_shape(values, LAWS[name](1.25)), name, "float32")


@pytest.mark.parametrize("name", LAWS)
def test_a_dtype_that_is_asked_for_is_given(name, x64):
    law = LAWS[name](jnp.float32(1.25))

    def draws(load: jax.Array) -> Any:
        pairs = (
            law.sample(KEY, (5, 3), load.dtype),
            bcgc.sorted_cycle_times(KEY, law, 3, 5, dtype=load.dtype),
        )
        return pairs if name in JOINT else (*pairs, simulate_max(KEY, law, load, 3, 5))

    for dtype in (jnp.float32, jnp.float64):
        shapes = jax.eval_shape(draws, jax.ShapeDtypeStruct((3,), dtype))
        expected = [(5, 3), (5, 3), (5,)]
        assert [array.shape for array in shapes] == expected[: len(shapes)]
        assert {array.dtype for array in shapes} == {jnp.dtype(dtype)}


def test_the_working_dtype_is_that_of_the_widest_array(precision):
    default: list[Any] = [
        (),
        (1.0, 2),
        ([1.0, np.arange(3)],),
        (np.float32(1.0), np.float64(2.0)),
    ]
    single: list[Any] = [
        (jnp.float32(1.0), 2.0, np.int64(3)),
        (np.ones(2, np.float32), [2.0, 3]),
    ]
    assert [working_dtype(*trees) for trees in default] == [precision] * 4
    assert [working_dtype(*trees) for trees in (*single, (np.float16(1.0), 2.0))] == [
        np.float32
    ] * 3
