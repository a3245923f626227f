"""Balance load in one compiled program: a transformer, two workers of two devices each.

The partitioner distributes each layer over the two devices of a worker (tensor
parallelism). Run `python docs/examples/compiled.py`. A plus marks the lines that differ
from a program without load balancing.
"""

import functools
import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bcgc_jax.balancing.compiled import SharedWork  # +

SAMPLES, LENGTH, WIDTH, LAYERS, WORDS = 128, 16, 32, 3, 50  # SAMPLES per step
TEXT = (
    np.random.default_rng(0).integers(WORDS, size=(1024, LENGTH + 1)).astype(np.int32)
)
# How parameters are sharded over the axis `model`. Other parameters are replicated.
SPECS = {
    "up": P(None, None, "model"),
    "down": P(None, "model"),
    "mix": P(None, None, "model"),
}


def parameters(key):
    shapes = {
        "words": (WORDS, WIDTH),
        "mix": (LAYERS, WIDTH, 3 * WIDTH),
        "up": (LAYERS, WIDTH, 4 * WIDTH),
        "down": (LAYERS, 4 * WIDTH, WIDTH),
    }
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    return {
        name: 0.1 * jax.random.normal(keys[name], shape)
        for name, shape in shapes.items()
    }


def layer(hidden, weights):
    query, key, value = jnp.split(hidden @ weights["mix"], 3, axis=-1)
    scores = jnp.einsum("btd,bsd->bts", query, key) / WIDTH**0.5
    scores = jnp.where(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), scores, -jnp.inf)
    hidden = hidden + jax.nn.softmax(scores) @ value
    return hidden + jax.nn.gelu(hidden @ weights["up"]) @ weights["down"], None


def loss(params, text):
    """Return the mean over the texts, as without load balancing."""
    layers = {name: params[name] for name in ("mix", "up", "down")}
    hidden, _ = jax.lax.scan(layer, params["words"][text[:, :-1]], layers)
    logs = jax.nn.log_softmax(hidden @ params["words"].T)
    words = jnp.take_along_axis(logs, text[:, 1:, None], -1)
    return -jnp.mean(words)


def train(mesh, shared, steps):
    optimizer = optax.adam(1e-2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state, text, step):
        # Replaces `value, slope = jax.value_and_grad(loss)(params, text)`.
        value, slope, _ = shared.value_and_grad(loss)(params, text, step)  # +
        updates, new_state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), new_state, value

    params = parameters(jax.random.key(0))
    specs = {name: NamedSharding(mesh, SPECS.get(name, P())) for name in params}
    params = jax.device_put(params, specs)
    state = jax.jit(optimizer.init)(params)
    for step in range(steps):
        rows = np.arange(step * SAMPLES, (step + 1) * SAMPLES) % len(TEXT)
        text = shared.place(TEXT[rows])  # + replaces jax.device_put
        params, state, value = train_step(params, state, text, step)
    return jax.device_get(params), float(value)


def main(steps=20):
    mesh = jax.make_mesh(
        (2, 2), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto)
    )
    return train(mesh, SharedWork(mesh), steps)  # +


if __name__ == "__main__":
    print("loss", main()[1])
