"""Compare the step times of coded training on Ray processes with the predicted ones.

Eight workers have injected delays from a shifted exponential distribution. Uncoded and
coded plans are trained twice. Forward passes are free, as in the paper, or take half as
long as backward passes. Each worker sleeps until the model of the plan has finished a
block. The sleep is not interrupted within a pass over a subset, so a straggler may
begin the next step late.

For each plan, the study prints the mean step time, and three predictions. The first is
the expected runtime, for which all workers begin each step on time. The second is the
mean runtime for the sampled times. The third is a simulated chain of steps, in which
workers begin late as in the measurement. The study takes five minutes. Run nothing else
at the same time.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bcgc_jax as bcgc
from bcgc_jax.coding import split_batch, training_scheme
from bcgc_jax.coding.delays import InjectedDelay
from bcgc_jax.coding.workers import CodedWorkers
from experiments.report import number, print_table, run_command, save, with_progress

WORKERS, WIDTH, SAMPLES = 8, 120, 96
LAW = bcgc.ShiftedExponential(1.0, 0.5)
METHODS = ("uncoded", "optimal")
# What a forward pass takes of a backward pass.
FORWARD = (0.0, 0.5)
# Wall-clock seconds of a mean uncoded pass.
PASS = 0.5
STEPS = 60


class Row(NamedTuple):
    """Seconds of a step.

    Attributes:
      forward: What a forward pass takes of a backward pass.
      method: The plan.
      steps: How many steps there were.
      measured: The mean.
      standard_error: Of that.
      expected: By the plan, where all workers are free when a step begins.
      drawn: The same, as the mean of the steps that were drawn.
      chained: The ratio of a chain of steps to steps in which all are free.
    """

    forward: float
    method: str
    steps: int
    measured: float
    standard_error: float
    expected: float
    drawn: float
    chained: float


def loss(params: Any, batch: Any) -> Any:
    inputs, targets = batch
    return jnp.mean((inputs @ params - targets) ** 2)


def run(
    out: Path,
    seed: int = 0,
    *,
    methods: Sequence[str] = METHODS,
    forward: Sequence[float] = FORWARD,
    steps: int = STEPS,
) -> None:
    tasks = [(ratio, method) for ratio in forward for method in methods]
    rows = [
        _row(ratio, method, steps, seed)
        for ratio, method in with_progress(tasks, "training")
    ]
    print_table(
        f"Seconds of a step of {WORKERS} workers, mean of {steps} steps",
        (
            *("forward", "plan", "measured", "± s.e.", "expected", "as drawn"),
            *("ratio", "in a chain"),
        ),
        [
            (
                f"{row.forward:g}",
                row.method,
                number(row.measured, 3),
                number(row.standard_error, 2),
                number(row.expected, 3),
                number(row.drawn, 3),
                f"{row.measured / row.drawn:.3f}",
                f"{row.chained:.3f}",
            )
            for row in rows
        ],
    )
    save(out, {"coded_workers": [row._asdict() for row in rows]})


def _row(forward: float, method: str, steps: int, seed: int) -> Row:
    rng = np.random.default_rng(seed)
    batch = (
        rng.standard_normal((SAMPLES, WIDTH)).astype(np.float32),
        rng.standard_normal(SAMPLES).astype(np.float32),
    )
    params = jnp.zeros(WIDTH, jnp.float32)
    problem = bcgc.Problem(LAW, WORKERS, WIDTH, SAMPLES, setup_cycles=forward * WIDTH)
    solution = bcgc.solve(problem, method)
    scheme = training_scheme(jax.random.key(seed), problem, solution, params)
    # In the unit of the cycle time, such that a mean backward pass takes `PASS`.
    seconds = PASS / (float(LAW.mean()) * WIDTH * SAMPLES / WORKERS)
    assert solution.plan is not None
    simulated = bcgc.simulate_runtime(
        jax.random.key(seed), problem, solution.plan, 20_000, unit="subset"
    )
    assert simulated.chained is not None
    delay = InjectedDelay(scheme, LAW, seconds, jax.random.key(seed + 1))
    subsets = split_batch(batch, WORKERS)
    took = []
    with CodedWorkers(loss, scheme.plan, subsets, delay=delay) as workers:
        for _ in range(3 + steps):
            begun = time.perf_counter()
            _, gradient = workers.value_and_grad(params)
            took.append(time.perf_counter() - begun)
    rule, blocks = scheme.plan.rule, np.arange(len(scheme.plan.blocks))
    ends = [delay.ends(step) for step in range(3, 3 + steps)]
    drawn = float(np.mean([rule.blocks(end, blocks).max() for end in ends]))
    exact = jax.grad(loss)(params, batch)
    np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-5)
    measured = np.array(took[3:])  # the first ones compile
    return Row(
        forward,
        method,
        steps,
        float(measured.mean()),
        float(measured.std(ddof=1) / steps**0.5),
        seconds * float(solution.rounded_runtime),
        drawn,
        float(simulated.chained / simulated.mean),
    )


if __name__ == "__main__":
    sys.exit(run_command(run))
