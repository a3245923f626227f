"""Schemes side by side on the handwritten digits, on worker processes and the wall clock."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array

from bcgc_jax.cluster.logs import Step, json_lines
from bcgc_jax.cluster.master import Cluster
from bcgc_jax.cluster.training import ClusterTraining, InjectedDelay, train_on_cluster
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
from bcgc_jax.solvers.solve import solve

# Beside the checkpoints: what iterations took and came to.
_LOG = "log.jsonl"


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
    method: str | Method,
    *,
    units: str = "coordinates",
    pace: InjectedDelay | None = None,
    num_steps: int = 200,
    learning_rate: float = 0.5,
    batch_size: int | None = None,
    before_step: Callable[[int, Cluster], None] = lambda step, cluster: None,
    after_step: Callable[[Step], None] = lambda step: None,
    folder: Path | None = None,
) -> ClusterDigitsRun:
    """`train_on_digits` on the processes of `cluster`; `problem` is that of `digits_problem`.

    The same key gives every scheme the same start and the same draws of the pace. With a `folder` the state
    is kept there, and what each iteration took, and a training that was cut off goes on.
    """
    workers = int(np.asarray(problem.num_workers))
    data = jax.tree.map(np.asarray, load_digits(workers))
    start_key, train_key = jax.random.split(key)

    @jax.jit
    def evaluate(params: Any) -> dict[str, Array]:
        return {"loss": cross_entropy(params, data.train), "accuracy": accuracy(params, data.test)}

    log: dict[int, dict[str, Any]] = {} if folder is None else _logged(folder)
    written = None if folder is None else json_lines(folder / _LOG)

    def told(step: Step) -> None:
        log[step.step] = {"seconds": step.seconds, **step.metrics}
        if written is not None:
            written(step)
        after_step(step)

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
        after_step=told,
        checkpoints=None if folder is None else folder / "state",
        units=units,
        order=digits_order(model),
    )
    expected = np.nan
    if pace is not None:
        expected = pace.seconds * float(solve(problem, method, key=train_key).rounded_runtime)
    seconds, loss, correct = (
        # NaN where a process was killed between an iteration and its line.
        np.array([float(log[k][name]) if k in log else np.nan for k in range(num_steps)])
        for name in ("seconds", "loss", "accuracy")
    )
    clock = np.nancumsum(seconds)
    name = method_of(method).name
    return ClusterDigitsRun(DigitsRun(name, expected, clock[None], loss[None], correct[None]), training)


def _logged(folder: Path) -> dict[int, dict[str, Any]]:
    """Earlier iterations, by number; of those that were done twice the last."""
    path = folder / _LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {}
    for text in lines:
        with contextlib.suppress(ValueError):  # half a line, of a process that was killed
            line = json.loads(text)
            found[line["step"]] = line
    return found
