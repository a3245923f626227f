"""A public function that is called again with the same shapes, eagerly, compiles nothing."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bcgc_jax as bcgc
from bcgc_jax import partitions
from bcgc_jax.iterations import expected_order_statistics, sorted_cycle_times
from bcgc_jax.laws import Atomic, JointLaw, Law
from bcgc_jax.measured.fits import fit_laws
from bcgc_jax.measured.resampling import bootstrap_interval, resampled_means
from bcgc_jax.order_statistics import simulate_max
from bcgc_jax.schedules import Group, schedule_of
from tests.compilations import compilations
from tests.problems import NAMES


def _power_hazard(p, t):
    return (t / p) ** 2


def _power_inverse(p, a):
    return p * a**0.5


@pytest.fixture(autouse=True, scope="module")
def nothing_compiled() -> None:
    """So that no second call finds a program that another test has compiled."""
    jax.clear_caches()


# From a number to a law: the second call has another one.
LAWS: dict[str, Callable[[float], Law | JointLaw]] = {
    "ShiftedExponential": lambda v: bcgc.ShiftedExponential(v, 0.1 * v),
    "Exponential": lambda v: bcgc.Exponential(v),
    "Deterministic": lambda v: bcgc.Deterministic(v),
    "Weibull": lambda v: bcgc.Weibull(v, 1.0 + v, 0.3),
    "Pareto": lambda v: bcgc.Pareto(v, 1.5 + v),
    "Uniform": lambda v: bcgc.Uniform(v, 1.0 + 2 * v),
    "TwoSpeed": lambda v: bcgc.TwoSpeed(v, 2.0 + 2 * v, 0.1 * v),
    "Lognormal": lambda v: bcgc.Lognormal(v, 0.5 * v, 0.2),
    "Gamma": lambda v: bcgc.Gamma(1.0 + v, v, 0.4),
    "Empirical": lambda v: bcgc.Empirical([v, 2.0, 3.0 * v]),
    "Pairs": lambda v: bcgc.Pairs([v, 0.0, 3.0], [v, 2.0, 3.0 * v]),
    "FromHazard": lambda v: bcgc.FromHazard(_power_hazard, _power_inverse, v),
    "HazardSpline": lambda v: bcgc.HazardSpline(
        jnp.array([0.0, 0.5, 1.0]), v * jnp.array([1.0, 2.0, 3.0]), jnp.full(3, 2 * v), 0.1
    ),
    "Rows": lambda v: bcgc.Rows([[v, 2.0], [3.0, 4.0 * v]]),
    "Unlike": lambda v: bcgc.Unlike([bcgc.Uniform(v, 4.0), bcgc.Pareto(v, 3.0)]),
}
TIMES = np.linspace(0.5, 4.0, 5)


def _methods(law: Law | JointLaw, seed: int) -> None:
    key = jax.random.key(seed)
    law.mean(), law.infimum()
    if isinstance(law, JointLaw):
        law.sample(key, (4, 2))
        law.draw_rows(key, 4)
        sorted_cycle_times(key, law, 2, 4)
        return
    law.sample(key, (4,))
    sorted_cycle_times(key, law, 3, 4)
    expected_order_statistics(law, 3)
    simulate_max(key, law, np.array([1.0, 2.0, 2.5]), 3, 4)
    law.pieces()
    law.cumulative_hazard(TIMES), law.cdf(TIMES), law.survival(TIMES)
    law.inverse_cumulative_hazard(TIMES)
    law.with_fast_inverse().inverse_cumulative_hazard(TIMES)
    if not isinstance(law.pieces(), Atomic):
        law.log_density(TIMES)


@pytest.mark.parametrize("name", LAWS)
def test_no_method_of_a_law_is_compiled_twice(name):
    _methods(LAWS[name](1.25), 0)
    with compilations() as found:
        _methods(LAWS[name](1.75), 1)
    assert not found


X = np.array([3.0, 2.0, 5.0], np.float32)
CALLS: dict[str, Callable[[int], Any]] = {
    "levels_from_partition": lambda i: bcgc.levels_from_partition(np.array([1 + i, 3 - i, 2])),
    "partition_from_levels": lambda i: bcgc.partition_from_levels(np.array([0, i, 2])),
    "cumulative_load": lambda i: partitions.cumulative_load(X + i),
    "finish_load": lambda i: partitions.finish_load(X, 2 + i < X, 0.5 * i),
    "project_partition": lambda i: bcgc.partitions.project_partition(X - i, 4.0 + i, 2),
    "round_partition": lambda i: bcgc.partitions.round_partition(jnp.asarray(X), 10 + i),
    "round_to_units": lambda i: partitions.round_to_units(X + i, X),
    "cost_of_units": lambda i: partitions.cost_of_units(np.array([1 + i, 2 - i, 0]), X),
    "smooth_empirical": lambda i: bcgc.measured.smooth_empirical(
        np.random.default_rng(i).gamma(2.0, 1.0, 100) + 1, pareto_tail=True
    ),
    "resampled_means": lambda i: resampled_means(
        jax.random.key(i), jnp.asarray(X), num_replicates=7, block=2
    ),
    "bootstrap_interval": lambda i: bootstrap_interval(
        jax.random.key(i),
        bcgc.Problem(bcgc.Rows(1 + i + np.arange(12.0).reshape(4, 3)), 3, 10),
        X,
        num_replicates=20,
        confidence=0.9 - 0.1 * i,
    ),
    "fit_laws": lambda i: fit_laws(
        jax.random.key(i),
        np.random.default_rng(i).gamma(2.0, 1.0, 60) + 1,
        laws=["shifted-exponential", "pareto", "uniform"],
        num_replicates=4,
    ),
}


def _problem(i: int) -> bcgc.Problem:
    return bcgc.Problem(bcgc.ShiftedExponential(1.0 + i, 0.5), 3, 2000 + i, 2.0 + i, 1.0 + i)


def _partition(i: int) -> np.ndarray:
    return X * np.float32(200 + i / 10)


def _made(law: str, i: int) -> Any:
    return LAWS[law](1.25 + i / 2)


def _solved(method: str, i: int) -> bcgc.Solution:
    return bcgc.solve(_problem(i), method)


def _loss(params: Any, batch: Any) -> Any:
    return jnp.mean((batch @ params) ** 2)


def _plan(i: int) -> bcgc.coding.CodingPlan:
    return bcgc.coding.coding_plan(jax.random.key(i), np.ones(4, np.float32), np.array([1, 3, 0]))


def _scheduled(i: int) -> bcgc.coding.SchedulePlan:
    schedule = schedule_of([Group(1, 1), Group(2, 1)], [1.0 + i, 3.0 - i])
    return bcgc.coding.schedule_plan(schedule, np.ones(4, np.float32), 3)


def _trace(i: int) -> bcgc.measured.Trace:
    seconds = np.random.default_rng(i).gamma(2.0, 1.0, 120) + 1
    step, worker = np.indices((40, 3)).reshape(2, -1)
    names = np.arange(40).astype(str), np.array(list("abc"))
    return bcgc.measured.Trace(*names, step, worker, seconds, np.zeros(120, bool))


def _fit_of_loads(i: int) -> Any:
    draws, load = np.random.default_rng(i), np.array([1.0, 2.0, 4.0])[np.arange(120) % 3]
    seconds = draws.gamma(4.0, 0.5, 120) + load * (1 + draws.exponential(1.0, 120))
    return bcgc.measured.fit_start_up(
        jax.random.key(i),
        _trace(i)._replace(seconds=seconds, load=load),
        start_ups=["gamma"],
        cycle_times=["shifted-exponential"],
        num_replicates=10,
    )


def _cells(i: int) -> bcgc.sweeps.Cells:
    return bcgc.grid(num_workers=[2, 3], rate=[1.0 + i, 2.0])


def _cell(num_workers: Any, rate: Any, max_workers: int) -> bcgc.Problem:
    return bcgc.Problem(bcgc.ShiftedExponential(rate), num_workers, 2000, max_workers=max_workers)


def _sweep(i: int) -> Any:
    plan = bcgc.Sweep(_cell, _cells(i), [SHORT], key=jax.random.key(i))
    return [plan.solve(chunk) for chunk in plan.chunks()]


SHORT = bcgc.Subgradient(max_steps=100, batch_size=64)


def _alpha(i: int) -> bcgc.TandonPartial:
    return bcgc.TandonPartial(alpha=4.0 + i)


def _written_sweep(i: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan = bcgc.Sweep(_cell, _cells(i), [_alpha(i)])
        bcgc.write_sweep(plan, Path(folder) / "sweep.csv")


OF_ITS_OWN = bcgc.Scheme("all_of_it", lambda p: p.total * jnp.eye(3)[0])
METHODS: dict[str, Callable[[int], dict[str, Any]]] = {
    "Optimal": lambda i: {"tolerance": 1e-5 + i},
    "Deadline": lambda i: {"deadline": 1.0 + i},
    "Subgradient": lambda i: {"tolerance": 1e-5 + i},
    "TandonPartial": lambda i: {"alpha": 2 + i},
    "Tandon": lambda i: {"level": i},
    "Ferdinand": lambda i: {"num_layers": 1 + i},
    "Cyclic": lambda i: {"stored": 1 + i},
    "Groups": lambda i: {"stored": 1 + i},
    "Alternating": lambda i: {"stored": 1 + i},
    "Backup": lambda i: {"spare": i},
    "Sharing": lambda i: {"chunks": 1 + i},
    "Credit": lambda i: {"max_subsets": 1 + i},
}


def _train(i: int) -> Any:
    scheme = _scheme(i)
    batch = bcgc.coding.split_batch(np.ones((6, 4), np.float32), 3)
    law = bcgc.ShiftedExponential(1.0 + i)
    return bcgc.coding.train(jax.random.key(i), _loss, scheme, law, np.ones(4, np.float32), batch, SGD, 2)


SGD = optax.sgd(0.1)


def _scheme(i: int) -> bcgc.coding.TrainingScheme:
    problem = bcgc.Problem(bcgc.ShiftedExponential(1.0 + i), 3, 4)
    # The same blocks: another number of levels in use is another program.
    solution = bcgc.solve(problem, "uncoded")
    solution = dataclasses.replace(solution, rounded=jnp.array([1, 3, 0]))
    return bcgc.coding.training_scheme(jax.random.key(i), problem, solution, np.ones(4, np.float32))


def _coded(i: int) -> Any:
    subsets = bcgc.coding.split_batch(np.full((6, 4), 1.0 + i, np.float32), 3)
    arrived = np.ones((2, 3), bool)
    return bcgc.coding.coded_value_and_grad(_loss, _plan(i))(
        np.full(4, 1.0 + i, np.float32), subsets, arrived
    )


def _starting(i: int, start_up: Any) -> bcgc.Problem:
    law = LAWS["Exponential"](1.0 + i)
    return bcgc.Problem(law, 3, 10, start_up=start_up, send_time=0.5 + i, chain_cycles=(0.2, 1)[i])


CALLS |= {
    "Problem": _problem,
    "Law": lambda i: bcgc.ShiftedExponential(1.0 + i).mean(),
    **{name: functools.partial(_made, name) for name in LAWS},
    "Solution": lambda i: bcgc.solve(_problem(i), "time"),
    "Status": lambda i: bcgc.Status(i),
    "block_runtime": lambda i: bcgc.block_runtime(X + i, X[::-1], num_samples=1.0 + i, setup_cycles=i),
    "block_runtime of workers that start up and send": lambda i: bcgc.block_runtime(
        X + i, X[::-1], start_ups=X - i, send_time=1.0 + i, chain_cycles=i
    ),
    "coordinate_runtime": lambda i: bcgc.coordinate_runtime(np.array([0, i, 2]), X, num_samples=1.0 + i),
    "simulate_runtime": lambda i: bcgc.simulate_runtime(jax.random.key(i), _problem(i), _partition(i), 8),
    "expected_runtime": lambda i: bcgc.expected_runtime(_problem(i), _partition(i)),
    "integrate_runtime": lambda i: bcgc.integrate_runtime(_problem(i), _partition(i)),
    "completion_probability": lambda i: bcgc.completion_probability(_problem(i), _partition(i), 10.0 + i),
    "certificate": lambda i: bcgc.certificate(_problem(i), _partition(i)),
    "expected_order_statistics": lambda i: bcgc.expected_order_statistics(LAWS["Weibull"](1.0 + i), 3),
    "sorted_cycle_times": lambda i: bcgc.sorted_cycle_times(
        jax.random.key(i), LAWS["Weibull"](1.0 + i), 3, 4
    ),
    "expected_runtime of workers that start up": lambda i: bcgc.expected_runtime(
        _starting(i, bcgc.Exponential(1.0 + i)), X
    ),
    "simulate_runtime of workers that start up": lambda i: bcgc.simulate_runtime(
        jax.random.key(i), _starting(i, bcgc.Exponential(1.0 + i)), X, 8
    ),
    "completion_probability of workers that send": lambda i: bcgc.completion_probability(
        _starting(i, 5 + i), X, 30.0 + i
    ),
    "solve for workers that send": lambda i: bcgc.solve(_starting(i, (5, 6.5)[i]), "time"),
    "solve": lambda i: bcgc.solve(_problem(i), bcgc.Optimal(tolerance=1e-5 + i * 1e-5)),
    "CompletionBound": lambda i: bcgc.completion_bound(_problem(i), 8e3 + i, rounds=0).upper_bound,
    "completion_bound": lambda i: bcgc.completion_bound(_problem(i), 8e3 + i, rounds=1),
    "solve to a deadline": lambda i: bcgc.solve(
        _problem(i), bcgc.Deadline(8e3 + i, tolerance=1e-4 + i * 1e-5)
    ),
    "solve for some levels": lambda i: bcgc.solve(_problem(i), bcgc.Optimal(levels=[0, 1 + i])),
    "solve by subgradients": lambda i: bcgc.solve(
        _problem(i), bcgc.Subgradient(max_steps=200, tolerance=1e-3 + i * 1e-4), key=jax.random.key(i)
    ),
    "solve for partial stragglers": lambda i: bcgc.solve(_problem(i), bcgc.TandonPartial(alpha=4.0 + i)),
    "solve for whole partial stragglers": lambda i: bcgc.solve(_problem(i), bcgc.TandonPartial(alpha=4 + i)),
    "solve for unlike workers": lambda i: bcgc.solve(
        bcgc.Problem(bcgc.Unlike([bcgc.Uniform(1.0, 2.0 + i)] * 3), 3, 2000),
        "tandon_partial",
        key=jax.random.key(i),
        num_draws=64,
        num_replications=4,
    ),
    "solve for whole numbers": lambda i: bcgc.solve(
        bcgc.Problem(LAWS["Weibull"](1.0), 3, 2000, (2.0, 3)[i], (1.0, 2)[i]), "time"
    ),
    "solve with layers": lambda i: bcgc.solve(_problem(i), f"ferdinand:{700 + i}"),
    "solve by a cyclic schedule": lambda i: bcgc.solve(_problem(i), "cyclic:2"),
    "Schedule": lambda i: bcgc.solve(_problem(i), "alternating:2:3", key=jax.random.key(i)).schedule,
    "Needs": lambda i: bcgc.solve(_problem(i), "backup:1").needs,
    "solve at a level": lambda i: bcgc.solve(_problem(i), f"tandon:{i}"),
    **{
        f"solve {name}": functools.partial(_solved, name)
        for name in ("frequency", "single_block", "ferdinand_full", "ferdinand_half", "limit")
    },
    "Scheme": lambda i: bcgc.solve(_problem(i), OF_ITS_OWN),
    **{
        name: functools.partial(lambda name, i: getattr(bcgc, name)(**METHODS[name](i)).name, name)
        for name in METHODS
    },
    "runtime_limit": lambda i: bcgc.runtime_limit(_problem(i)),
    "straggler_ratio": lambda i: bcgc.straggler_ratio(LAWS["Weibull"](1.0 + i)),
    "Sweep": _sweep,
    "sweep": lambda i: bcgc.sweep(_cell, _cells(i), [_alpha(i)]),
    "write_sweep": _written_sweep,
    "Trace": lambda i: _trace(i).rows(),
    "load_trace": lambda i: None,
    "Description": lambda i: bcgc.measured.describe(_trace(i)).remarks(),
    "describe": lambda i: bcgc.measured.describe(_trace(i)),
    "Fit": lambda i: None,
    "StartUpFit": lambda i: None,
    "fit_start_up": _fit_of_loads,
    "grid": _cells,
    "allocate": lambda i: bcgc.coding.allocate(4, 1 + i),
    "gradient_code": lambda i: bcgc.coding.gradient_code(jax.random.key(i), 4 + i, 1 + i),
    "GradientCode": lambda i: bcgc.coding.gradient_code(jax.random.key(i), 5, 2).encoding,
    "conditioning": lambda i: bcgc.coding.conditioning(
        jax.random.key(i), bcgc.coding.gradient_code(jax.random.key(i), 5, 2), 20
    ),
    "decoding_weights": lambda i: bcgc.coding.decoding_weights(
        bcgc.coding.gradient_code(jax.random.key(i), 4, 1).encoding, np.arange(4) != i
    ),
    "encode": lambda i: bcgc.coding.encode(
        bcgc.coding.gradient_code(jax.random.key(i), 4, 1), np.full((4, 2), 1.0 + i)
    ),
    "decode": lambda i: bcgc.coding.decode(np.array([1.0 + i, 2.0]), [X, X + i]),
    "CodingPlan": lambda i: _plan(i).held(1),
    "coding_plan": _plan,
    "SchedulePlan": lambda i: _scheduled(i).held(1),
    "schedule_plan": _scheduled,
    "coded_value_and_grad": _coded,
    "backward_order": lambda i: bcgc.coding.backward_order(
        _loss, np.ones(4, np.float32), np.ones((2, 4), np.float32)
    ),
    "unit_sizes": lambda i: bcgc.coding.unit_sizes({"a": X, "b": X}),
    "split_batch": lambda i: bcgc.coding.split_batch(np.ones((6, 2)) * i, 3),
    "shard_subsets": lambda i: bcgc.coding.shard_subsets(np.ones((3, 2)) * i),
    "CodedGradient": _coded,
    "Training": _train,
    "Certificate": lambda i: bcgc.certificate(_problem(i), _partition(i)),
    "Expectation": lambda i: bcgc.integrate_runtime(_problem(i), _partition(i)),
    "RuntimeEstimate": lambda i: bcgc.simulate_runtime(jax.random.key(i), _problem(i), _partition(i), 8),
    "Parts": lambda i: bcgc.solve(_problem(i), "time").parts,
    "Comparison": lambda i: repr(bcgc.compare(_problem(i), ["time", "uncoded"])),
    "compare": lambda i: bcgc.compare(_problem(i), ["time", "uncoded"]),
    "rounded_runtime": lambda i: bcgc.solve(_problem(i), "time").rounded_runtime,
    "TrainingScheme": _scheme,
    "training_scheme": _scheme,
    "train": _train,
}


def test_every_public_name_is_called_twice():
    assert set(CALLS) >= NAMES


@pytest.mark.parametrize("name", CALLS)
def test_no_function_is_compiled_twice(name):
    CALLS[name](0)
    with compilations() as found:
        CALLS[name](1)
    assert not found
