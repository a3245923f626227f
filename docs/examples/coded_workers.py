"""Train with coded gradients on Ray processes, with Orbax checkpoints.

`python docs/examples/coded_workers.py FOLDER` trains for 40 steps and saves a
checkpoint every 10 steps. After an interruption, the same command continues from the
last checkpoint. Install `pip install '.[cluster]' orbax-checkpoint` first.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import bcgc_jax as bcgc
from bcgc_jax.coding import split_batch, training_scheme
from bcgc_jax.coding.workers import CodedWorkers, WorkersLost

WORKERS, SAMPLES, STEPS = 4, 64, 40
INPUTS = np.random.default_rng(0).standard_normal((SAMPLES, 8)).astype(np.float32)
TARGETS = INPUTS @ np.arange(8, dtype=np.float32)


def loss(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params - targets) ** 2)


def train(folder):
    params = jnp.zeros(8)
    optimizer = optax.adam(0.3)
    state = optimizer.init(params)
    law = bcgc.ShiftedExponential(1.0, 0.5)  # Or fit your own times.
    problem = bcgc.Problem(law, WORKERS, params.size, SAMPLES)
    solution = bcgc.solve(problem)
    plan = training_scheme(jax.random.key(0), problem, solution, params).plan
    subsets = split_batch((INPUTS, TARGETS), WORKERS)
    with (
        ocp.CheckpointManager(Path(folder).absolute()) as manager,
        CodedWorkers(loss, plan, subsets) as workers,
    ):
        first = 0
        if manager.latest_step() is not None:
            first = manager.latest_step()
            template = {"params": params, "state": state}
            saved = manager.restore(first, args=ocp.args.StandardRestore(template))
            params, state = saved["params"], saved["state"]
        for step in range(first, STEPS):
            try:
                value, gradient = workers.value_and_grad(params)
            except WorkersLost:  # Ray restarts lost workers.
                value, gradient = workers.value_and_grad(params)
            updates, state = optimizer.update(gradient, state)
            params = optax.apply_updates(params, updates)
            if (step + 1) % 10 == 0:
                tree = {"params": params, "state": state}
                manager.save(step + 1, args=ocp.args.StandardSave(tree))
                print(f"step {step + 1}: loss {value:.4f}")
    return params


if __name__ == "__main__":
    train(sys.argv[1])
