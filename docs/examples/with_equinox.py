"""Share work in a loop with Equinox, with the data of `plain_jax.py`.

Run it like `plain_jax.py`. A plus marks the lines that are added to a data-parallel
loop.
"""

import ending
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import processes
from plain_jax import SAMPLES, WORKERS, load

from bcgc_jax.balancing import dispatch  # +


@eqx.filter_jit
@eqx.filter_grad
def slope(model, images, labels):
    scores = jax.nn.log_softmax(jax.vmap(model)(images))
    return -jnp.sum(scores[jnp.arange(len(labels)), labels]) / SAMPLES


def train(share, all_reduce, steps):
    model = eqx.nn.MLP(8, 3, 16, depth=1, key=jax.random.key(0))
    optimizer = optax.adam(1e-2)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    for step in range(steps):
        total = jax.tree.map(
            jnp.zeros_like, eqx.filter(model, eqx.is_inexact_array)
        )  # +
        for chunk in share.step(step):  # +
            batch = load(step, chunk.rows(SAMPLES, share.num_workers))
            gradient = slope(model, *batch)
            total = jax.block_until_ready(jax.tree.map(jnp.add, total, gradient))  # +
        gradient = all_reduce(total)
        updates, state = optimizer.update(gradient, state)
        model = eqx.apply_updates(model, updates)
    return eqx.filter(model, eqx.is_inexact_array)


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
