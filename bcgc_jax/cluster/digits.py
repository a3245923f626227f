"""Schemes side by side on the handwritten digits, on worker processes and the wall clock."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array

from bcgc_jax.cluster.master import Cluster
from bcgc_jax.cluster.training import ClusterTraining, Pace, train_on_cluster
from bcgc_jax.coding.digits import (
    DigitsRun,
    accuracy,
    cross_entropy,
    digits_order,
    initial_params,
    load_digits,
)
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.methods import Method, method_of
from bcgc_jax.solvers.schemes import Scheme
from bcgc_jax.solvers.solve import solve


class ClusterDigitsRun(NamedTuple):
    """`run`, of one row, its clock and its expectation in seconds; and all else that was recorded.

    Without a pace the expectation is NaN: it would be that of other workers.
    """

    run: DigitsRun
    training: ClusterTraining


def train_digits_on_cluster(
    key: Array,
    cluster: Cluster,
    problem: Problem,
    model: str,
    method: str | Method | Scheme,
    *,
    units: str = "coordinates",
    pace: Pace | None = None,
    num_steps: int = 200,
    learning_rate: float = 0.5,
    batch_size: int | None = None,
    before_step: Callable[[int, Cluster], None] = lambda step, cluster: None,
) -> ClusterDigitsRun:
    """`train_on_digits` on the processes of `cluster`; `problem` is that of `digits_problem`.

    The same key gives every scheme the same start and the same draws of the pace.
    """
    workers = int(np.asarray(problem.num_workers))
    data = jax.tree.map(np.asarray, load_digits(workers))
    start_key, train_key = jax.random.split(key)

    @jax.jit
    def evaluate(params: Any) -> tuple[Array, Array]:
        return cross_entropy(params, data.train), accuracy(params, data.test)

    training = train_on_cluster(
        key=train_key,
        cluster=cluster,
        loss=cross_entropy,
        problem=problem,
        params=initial_params(start_key, model),
        data=data.train,
        optimizer=optax.sgd(learning_rate),
        num_steps=num_steps,
        method=method,
        pace=pace,
        batch_size=batch_size,
        evaluate=evaluate,
        before_step=before_step,
        units=units,
        order=digits_order(model),
    )
    expected = np.nan
    if pace is not None:
        expected = pace.seconds * float(solve(problem, method, key=train_key).rounded_runtime)
    loss, correct = np.asarray(jax.device_get(training.metrics), float).T
    clock = np.cumsum(training.seconds)
    name = method_of(method).name
    return ClusterDigitsRun(DigitsRun(name, expected, clock[None], loss[None], correct[None]), training)
