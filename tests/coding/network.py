"""A small network, its data, and whose messages arrive."""

import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(3)


def network(params, batch):
    x, label = batch
    hidden = jax.nn.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    scores = jax.nn.log_softmax(hidden @ params["out"]["w"] + params["out"]["b"])
    return -jnp.mean(jnp.take_along_axis(scores, label[:, None], axis=1))


def make_params(rng):
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))  # noqa: E731
    return {
        "hidden": {"w": draw(7, 5), "b": draw(5)},
        "out": {"w": draw(5, 3), "b": draw(3)},
    }


def make_batch(rng, samples):
    return jnp.asarray(rng.standard_normal((samples, 7))), jnp.asarray(
        rng.integers(0, 3, samples)
    )


def masks(plan, rng, extra=0):
    """Whose messages arrived: N - n workers for a block, and up to `extra` more."""
    rank = np.argsort(rng.random((len(plan.blocks), plan.num_workers)), axis=1)
    return (
        rank
        >= np.maximum(np.array([block.level for block in plan.blocks]) - extra, 0)[
            :, None
        ]
    )


def relative_difference(a, b):
    a, b = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]).astype(float)
        for t in (a, b)
    )
    return np.linalg.norm(a - b) / np.linalg.norm(b)
