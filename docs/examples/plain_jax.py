"""Share work in a plain JAX loop, where four processes add their gradients by `psum`.

Set BCGC_HANDOUT_KEY to the same secret in four shells. Run
`python docs/examples/plain_jax.py RANK` in them, with RANK from 0 to 3. A plus marks
the lines that are added to a data-parallel loop.
"""

import ending
import jax
import jax.numpy as jnp
import numpy as np
import optax
import processes

from bcgc_jax.balancing import dispatch  # +

WORKERS, SAMPLES = 4, 128  # SAMPLES per step
IMAGES = np.random.default_rng(0).standard_normal((1024, 8)).astype(np.float32)
LABELS = np.arange(1024) % 3


def loss(params, images, labels):
    """Return the loss of a chunk's samples, divided by the number of all samples.

    The chunks' gradients then add up to the gradient of the mean.
    """
    hidden = jnp.tanh(images @ params["first"])
    scores = jax.nn.log_softmax(hidden @ params["last"])
    return -jnp.sum(scores[jnp.arange(len(labels)), labels]) / SAMPLES


def load(step, rows):
    """Return samples, which do not depend on the worker that computes them."""
    chosen = (step * SAMPLES + np.asarray(rows)) % len(IMAGES)
    return IMAGES[chosen], LABELS[chosen]


def train(share, all_reduce, steps):
    keys = jax.random.split(jax.random.key(0))
    first, last = (
        jax.random.normal(keys[0], (8, 16)),
        jax.random.normal(keys[1], (16, 3)),
    )
    params = {"first": first, "last": last}
    optimizer, slope = optax.adam(1e-2), jax.jit(jax.grad(loss))
    state = optimizer.init(params)
    for step in range(steps):
        total = jax.tree.map(jnp.zeros_like, params)  # +
        for chunk in share.step(step):  # +
            batch = load(step, chunk.rows(SAMPLES, share.num_workers))
            gradient = slope(params, *batch)
            total = jax.block_until_ready(jax.tree.map(jnp.add, total, gradient))  # +
        gradient = all_reduce(total)
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
    return params


def main(rank, steps=100, ports=(5701, 5702)):
    processes.start(rank, WORKERS, port=ports[0])
    if rank == 0:  # +
        coordinator = dispatch.serve(WORKERS, port=ports[1])  # +
    share = dispatch.join(("127.0.0.1", ports[1]), rank)  # +
    params = train(share, processes.all_reduce, steps)
    share.close()  # +
    if rank == 0:  # +
        coordinator.close()  # +
    return params


if __name__ == "__main__":
    ending.run(main)
