"""Schemes side by side on the handwritten digits, on worker processes and the wall clock."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from bcgc_jax.cluster.planning import Told, on_processes
from bcgc_jax.cluster.training import ClusterTraining, Run, Step, json_lines, train_on_cluster
from bcgc_jax.coding import digits
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.methods import Method, method_of
from bcgc_jax.solvers.solve import solve


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
    **more: Any,
) -> tuple[digits.DigitsRun, ClusterTraining]:
    """`train_on_digits` on worker processes, with one row, in seconds.

    `problem` is that of `digits_problem`. The same key gives every scheme the same start and draws
    of the pace; without a pace NaN is expected. A folder of checkpoints keeps too what each
    iteration took. There may be `more` options of the plan.
    """
    data = jax.tree.map(np.asarray, digits.load_digits(int(np.asarray(problem.num_workers))))
    start_key, train_key = jax.random.split(key)
    log: dict[int, dict[str, Any]] = {}
    listeners = [] if run.after_step is None else [run.after_step]
    checkpoints = None
    if run.checkpoints is not None:
        folder = Path(run.checkpoints)
        checkpoints = folder / "state"
        log = _logged(folder / "log.jsonl")
        listeners.append(json_lines(folder / "log.jsonl"))

    @jax.jit
    def evaluate(params: Any) -> dict[str, Array]:
        loss = digits.cross_entropy(params, data.train)
        return {"loss": loss, "accuracy": digits.accuracy(params, data.test)}

    def told(step: Step) -> None:
        log[step.step] = {"seconds": step.seconds, **step.metrics}
        for listener in listeners:
            listener(step)

    training = train_on_cluster(
        train_key,
        digits.cross_entropy,
        Told(problem, method, {"units": units, "order": digits.digits_order(model), **more}),
        dataclasses.replace(run, checkpoints=checkpoints, after_step=told),
        digits.initial_params(start_key, model),
        data.train,
        optax.sgd(learning_rate),
        num_steps,
        batch_size=batch_size,
        evaluate=evaluate,
    )
    expected = np.nan
    if run.pace is not None:
        solution = solve(problem, on_processes(method), key=train_key)
        expected = run.pace.seconds * float(solution.rounded_runtime)
    # NaN where a process was killed between an iteration and its line.
    lines = [log.get(k, {}) for k in range(num_steps)]
    names = ("seconds", "loss", "accuracy")
    rows = [[[float(line.get(name, np.nan)) for line in lines]] for name in names]
    seconds, *course = map(np.array, rows)
    clock = np.nancumsum(seconds, axis=1)
    return digits.DigitsRun(method_of(method).name, expected, clock, *course), training


def _logged(path: Path) -> dict[int, dict[str, Any]]:
    """Earlier iterations, by number; of those that were done twice the last."""
    if not path.exists():
        return {}
    steps = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # half a line, of a process that was killed
            line = json.loads(text)
            steps[line["step"]] = line
    return steps
