"""A loss that draws and makes a new state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

PARAMS = {"w": np.array([1.0, -2.0, 0.5], np.float32), "b": np.float32(0.5)}
STATE = {"mean": np.float32(2.0), "largest": np.float32(0.0)}
SGD = optax.sgd(0.1)


def key_of(key, *numbers):
    """As documented: `fold_in` of 2³² - 1, step, subset and chunk, in this order."""
    for number in (2**32 - 1, *numbers):
        key = jax.random.fold_in(key, number)
    return key


def loss(params, state, batch, key):
    """As dropout and BatchNorm in training, and a metric."""
    kept = jnp.where(jax.random.bernoulli(key, 0.5, batch.shape), 2 * batch, 0)
    scores = kept @ params["w"]
    mean = scores.mean()
    state = {"mean": 0.9 * state["mean"] + 0.1 * mean, "largest": scores.max()}
    return jnp.mean((scores - mean + params["b"] - batch[:, 0]) ** 2), state
