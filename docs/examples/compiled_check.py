"""Check whether work sharing in one compiled program works on this machine's devices.

Run `python docs/examples/compiled_check.py`. The program prints the devices, whether a
gradient with shared work is exact, and the duration of a turn. It has not been tried on
a GPU or TPU yet. If it hangs on such a device, end it by `kill -9`.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bcgc_jax.balancing.compiled import SharedWork

CHUNKS, ROWS, WIDTH, STEPS = (
    8,
    4,
    128,
    20,
)  # CHUNKS per subset, ROWS in the smallest chunk
# Rounding errors are at most 1e-6.
EXACT = 1e-5


def loss(weights, rows):
    return jnp.mean(jnp.sum(jnp.tanh(rows @ weights) ** 2, -1))


def check(mesh):
    """Return the largest relative error of a gradient, and the seconds of a turn."""
    workers = mesh.shape["data"]
    samples = workers * CHUNKS * 4 * ROWS
    shared = SharedWork(mesh, chunks=CHUNKS, adapt=False)
    gradient = jax.jit(shared.value_and_grad(loss))
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((samples, WIDTH)).astype(np.float32)
    weights = (rng.standard_normal((WIDTH, WIDTH)) / WIDTH).astype(np.float32)
    outputs = np.tanh(inputs @ weights.astype(float))
    exact = inputs.T @ (2 * outputs * (1 - outputs**2)) / samples
    stored = shared.place(inputs)
    weights = jax.device_put(weights, NamedSharding(mesh, P(None, mesh.axis_names[1])))
    seconds, errors = [], []
    for step in range(STEPS):
        began = time.perf_counter()
        _, slope, ok = jax.block_until_ready(gradient(weights, stored, step))
        # After its last chunk, a worker sends one more request.
        seconds.append((time.perf_counter() - began) / (max(shared.count.values()) + 1))
        if not ok:
            raise SystemExit(f"step {step}: {shared.error}")
        errors.append(
            float(np.abs(np.asarray(slope) - exact).max() / np.abs(exact).max())
        )
    return max(errors), statistics.median(seconds[1:])


def main():
    devices = jax.local_devices()
    print(
        f"JAX {jax.__version__}, {len(devices)} × {devices[0].platform}: "
        f"{devices[0].device_kind}"
    )
    for group in (1, 2):
        if len(devices) % group == 0:
            shape = len(devices) // group, group
            kinds = AxisType.Auto, AxisType.Auto
            mesh = jax.make_mesh(
                shape, ("data", "model"), axis_types=kinds, devices=devices
            )
            with jax.default_matmul_precision("highest"):
                error, turn = check(mesh)
            print(
                f"{shape[0]} × {group} devices: "
                f"{'exact' if error < EXACT else 'NOT EXACT'}, largest error "
                f"{error:.0e}; {1e3 * turn:.2f} ms per turn, with its small chunk"
            )
            if shape[0] == 1:
                print("One worker cannot share work. Use two devices or more.")


if __name__ == "__main__":
    main()
