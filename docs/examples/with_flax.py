"""Share work in a loop with Flax NNX, BatchNorm, dropout, and an Orbax checkpoint.

Run it like `plain_jax.py`, whose data it uses. A second run continues from the
checkpoint. A plus marks the lines that are added to a data-parallel loop.
"""

from pathlib import Path

import ending
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import processes
from flax import nnx
from plain_jax import SAMPLES, WORKERS, load

from bcgc_jax.balancing import dispatch  # +


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
        self.last = nnx.Linear(16, 3, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(16, rngs=rngs), nnx.Dropout(0.1)

    def __call__(self, images, rngs):
        return self.last(
            self.dropout(nnx.relu(self.norm(self.first(images))), rngs=rngs)
        )


OPTIMIZER = optax.adam(1e-2)


def slope_of(graph, others):
    """Return a function that computes a chunk's gradient and running statistics.

    The statistics are weighted by the chunk's fraction of all samples, as the gradient.
    """

    @jax.jit
    def slope(params, statistics, images, labels, key):
        def loss(params):
            model = nnx.merge(graph, params, statistics, others)
            scores = jax.nn.log_softmax(model(images, nnx.Rngs(key)))
            value = -jnp.sum(scores[jnp.arange(len(labels)), labels]) / SAMPLES
            return value, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        gradient, new = jax.grad(loss, has_aux=True)(params)
        return gradient, jax.tree.map(lambda leaf: leaf * (len(labels) / SAMPLES), new)

    return slope


def key_of(chunk):
    """Return the key of a chunk, which does not depend on the worker."""
    key = jax.random.key(0)
    for number in chunk.seed:  # Step, subset and chunk.
        key = jax.random.fold_in(key, number)
    return key


def train(share, all_reduce, steps, folder):
    parts = nnx.split(Model(nnx.Rngs(0)), nnx.Param, nnx.BatchStat, ...)
    graph, params, statistics, others = parts
    slope = slope_of(graph, others)
    params, statistics = nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)
    training = {"step": 0, "params": params, "statistics": statistics}
    training["optimizer"] = OPTIMIZER.init(params)
    checkpoints = orbax.checkpoint.CheckpointManager(Path(folder).resolve())
    latest = checkpoints.latest_step()
    if latest is not None:
        kept = orbax.checkpoint.args.PyTreeRestore(jax.tree.map(np.asarray, training))
        training = checkpoints.restore(latest, args=kept)
    params, statistics, state = (
        training[name] for name in ("params", "statistics", "optimizer")
    )
    for step in range(int(training["step"]), steps):
        total = jax.tree.map(np.zeros_like, (params, statistics))  # +
        for chunk in share.step(step):  # +
            batch = load(step, chunk.rows(SAMPLES, share.num_workers))
            own = slope(params, statistics, *batch, key_of(chunk))
            total = jax.block_until_ready(jax.tree.map(jnp.add, total, own))  # +
        gradient, statistics = all_reduce(total)
        updates, state = OPTIMIZER.update(gradient, state)
        params = optax.apply_updates(params, updates)
    training = {
        "step": steps,
        "params": params,
        "statistics": statistics,
        "optimizer": state,
    }
    arrays = jax.tree.map(np.asarray, training)
    checkpoints.save(steps, args=orbax.checkpoint.args.PyTreeSave(arrays))
    checkpoints.close()
    return params, statistics


def main(rank, steps=100, ports=(5701, 5702), folder="checkpoints"):
    processes.start(rank, WORKERS, port=ports[0])
    if rank == 0:  # +
        coordinator = dispatch.serve(WORKERS, port=ports[1], equal_chunks=True)  # +
    share = dispatch.join(("127.0.0.1", ports[1]), rank)  # +
    params = train(share, processes.all_reduce, steps, folder)
    share.close()  # +
    if rank == 0:  # +
        coordinator.close()  # +
    return params


if __name__ == "__main__":
    ending.run(main)
