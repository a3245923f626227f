"""Schemes side by side on the handwritten digits, on worker processes and the wall clock."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array

from bcgc_jax.cluster.checkpoints import Checkpoints
from bcgc_jax.cluster.logs import Step, json_lines
from bcgc_jax.cluster.told import Told
from bcgc_jax.cluster.training import ClusterTraining, Run, train_on_cluster
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
    run: Run,
    problem: Problem,
    model: str,
    method: str | Method,
    *,
    units: str = "coordinates",
    num_steps: int = 200,
    learning_rate: float = 0.5,
    batch_size: int | None = None,
) -> ClusterDigitsRun:
    """`train_on_digits` on worker processes; `problem` is that of `digits_problem`.

    The same key gives every scheme the same start and the same draws of the pace. With a folder for
    checkpoints what each iteration took is kept there too, and a training that was cut off goes on.
    """
    workers = int(np.asarray(problem.num_workers))
    data = jax.tree.map(np.asarray, load_digits(workers))
    start_key, train_key = jax.random.split(key)

    @jax.jit
    def evaluate(params: Any) -> dict[str, Array]:
        return {"loss": cross_entropy(params, data.train), "accuracy": accuracy(params, data.test)}

    assert not isinstance(run.checkpoints, Checkpoints)
    folder = None if run.checkpoints is None else Path(run.checkpoints)
    log = {} if folder is None else _logged(folder / _LOG)
    listeners = [] if folder is None else [json_lines(folder / _LOG)]
    listeners += [] if run.after_step is None else [run.after_step]

    def told(step: Step) -> None:
        log[step.step] = {"seconds": step.seconds, **step.metrics}
        for listener in listeners:
            listener(step)

    training = train_on_cluster(
        train_key,
        cross_entropy,
        Told(problem, method, {"units": units, "order": digits_order(model)}),
        dataclasses.replace(run, checkpoints=folder and folder / "state", after_step=told),
        initial_params(start_key, model),
        data.train,
        optax.sgd(learning_rate),
        num_steps,
        batch_size=batch_size,
        evaluate=evaluate,
    )
    expected = np.nan
    if run.pace is not None:
        expected = run.pace.seconds * float(solve(problem, method, key=train_key).rounded_runtime)
    # NaN where a process was killed between an iteration and its line.
    lines = [log.get(k, {}) for k in range(num_steps)]
    seconds, loss, correct = (
        np.array([[float(line.get(name, np.nan)) for line in lines]])
        for name in ("seconds", "loss", "accuracy")
    )
    run_of = DigitsRun(method_of(method).name, expected, np.nancumsum(seconds, axis=1), loss, correct)
    return ClusterDigitsRun(run_of, training)


def _logged(path: Path) -> dict[int, dict[str, Any]]:
    """Earlier iterations, by number; of those that were done twice the last."""
    found = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):  # half a line, of a process that was killed
            line = json.loads(text)
            found[line["step"]] = line
    return found
