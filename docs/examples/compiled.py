"""Work sharing in one compiled program: a transformer over four devices, two workers of
two.

Each worker's two devices share the layers (tensor parallelism, left to the
partitioner). Start `python docs/examples/compiled.py`. Lines with a plus are those that
the program gains.
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

from bcgc_jax.compiled import SharedWork  # +

SAMPLES, LENGTH, WIDTH, LAYERS, WORDS = 128, 16, 32, 3, 50  # samples of a step
TEXT = (
    np.random.default_rng(0).integers(WORDS, size=(1024, LENGTH + 1)).astype(np.int32)
)
# How a parameter lies on the axis `model`, by its name; all others are whole on each
# device.
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


def loss(params, text, key):
    """A sum over the chunk, divided by the samples of a step: so the parts add up."""
    layers = {name: params[name] for name in ("mix", "up", "down")}
    hidden, _ = jax.lax.scan(layer, params["words"][text[:, :-1]], layers)
    logs = jax.nn.log_softmax(hidden @ params["words"].T)
    words = jnp.take_along_axis(logs, text[:, 1:, None], -1)
    return -jnp.sum(words) / SAMPLES / LENGTH


def train(mesh, shared, steps):
    gradient = shared.value_and_grad(
        loss, SAMPLES
    )  # + in place of jax.value_and_grad(loss)
    optimizer = optax.adam(1e-2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state, stored, step, key):
        value, slope, ok = gradient(params, stored, step, key)
        updates, new_state = optimizer.update(slope, state, params)
        new = optax.apply_updates(params, updates), new_state
        keep = functools.partial(jnp.where, ok)  # + a step that failed changes nothing
        return *jax.tree.map(keep, new, (params, state)), value, ok  # +

    rows = np.concatenate([shared.rows[worker] for worker in sorted(shared.rows)])  # +
    params = parameters(jax.random.key(0))
    specs = {name: NamedSharding(mesh, SPECS.get(name, P())) for name in params}
    params = jax.device_put(params, specs)
    state = jax.jit(optimizer.init)(params)
    for step in range(steps):
        text = TEXT[(step * SAMPLES + rows) % len(TEXT)]
        stored = jax.make_array_from_process_local_data(
            NamedSharding(mesh, P("data")), text
        )
        params, state, value, ok = train_step(
            params, state, stored, step, jax.random.key(1)
        )
        if not ok:
            raise SystemExit(f"step {step}: {shared.error}")
    return jax.device_get(params), float(value)


def main(steps=20):
    mesh = jax.make_mesh(
        (2, 2), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto)
    )
    return train(mesh, SharedWork(mesh), steps)  # +


if __name__ == "__main__":
    print("loss", main()[1])
