"""Balance load in one compiled program with Flax NNX and dropout: four workers.

Each worker is a device. Run `python docs/examples/compiled_nnx.py`. A plus marks the
lines that differ from a program without load balancing.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType

from bcgc_jax.balancing.compiled import SharedWork  # +

SAMPLES, STEPS = 128, 30
RNG = np.random.default_rng(0)
LABELS = RNG.integers(3, size=SAMPLES).astype(np.int32)
IMAGES = (RNG.standard_normal((SAMPLES, 8)) + np.eye(3, 8)[LABELS]).astype(np.float32)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.last = nnx.Linear(16, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.1)

    def __call__(self, images, rngs):
        return self.last(self.dropout(nnx.relu(self.first(images)), rngs=rngs))


def train(mesh, shared, steps):
    graph, params, others = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)
    params = nnx.to_pure_dict(params)
    optimizer = optax.adam(1e-2)

    def loss(params, rows, key):
        images, labels = rows
        model = nnx.merge(graph, params, others)
        logs = jax.nn.log_softmax(model(images, nnx.Rngs(key)))
        return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], -1))

    gradient = shared.value_and_grad(loss)  # + replaces jax.value_and_grad(loss)

    @jax.jit
    def train_step(params, state, stored, step, key):
        value, slope, ok = gradient(params, stored, step, key)  # +
        updates, new_state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), new_state, value, ok  # +

    stored = shared.place((IMAGES, LABELS))  # + replaces jax.device_put
    state = optimizer.init(params)
    for step in range(steps):
        params, state, value, ok = train_step(
            params, state, stored, step, jax.random.key(1)
        )
        if not ok:  # + The batch stays, so no later place(batch) raises the error.
            raise shared.error  # +
    return jax.device_get(params), float(value)


def mesh_of_workers():
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))


if __name__ == "__main__":
    mesh = mesh_of_workers()
    print("loss", train(mesh, SharedWork(mesh), STEPS)[1])  # +
