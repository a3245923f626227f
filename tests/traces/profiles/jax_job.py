"""A rank of a data-parallel JAX job, traced:
`python -m tests.traces.profiles.jax_job SPEC`.

It prints its own seconds of each step by its own clock: from the end of the step before
to the gradient, which a callback sees.
"""

import json
import os
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

WIDTH = 256


def sleeps(steps: int, workers: int) -> np.ndarray:
    """Seconds, `[S, W]`: some single steps, and worker 1 in the last half."""
    slow = 0.05 * (np.random.default_rng(0).random((steps, workers)) < 0.25)
    slow[steps // 2 :, 1] += 0.02
    return slow


def traced_step(mesh: Mesh, layers: int, before: Any, after: Any) -> Any:
    """One jitted step with a `psum`; the callbacks around the gradient return 0."""
    nothing = jax.ShapeDtypeStruct((), jnp.float32)

    def loss(weights: Any, rows: Any) -> Any:
        for _ in range(layers):
            rows = jnp.tanh(rows @ weights)
        return jnp.sum(rows**2)

    def step(weights: Any, rows: Any) -> Any:
        begun = io_callback(before, nothing, weights[0, 0] + rows[0, 0])
        gradient = jax.grad(loss)(weights, rows + begun)
        gradient = gradient + io_callback(after, nothing, gradient[0, 0])
        return weights - 1e-6 * jax.lax.psum(gradient, "worker")

    specs = (P(), P("worker"))
    return jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    )


def main(spec: dict[str, Any]) -> None:
    rank, workers, steps = spec["rank"], spec["workers"], spec["steps"]
    if spec.get("core") is not None:
        os.sched_setaffinity(0, {spec["core"]})
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(spec["address"], workers, rank)
    plan = sleeps(steps, workers) if spec["sleeps"] else np.zeros((steps, workers))
    now = -1
    gradients: list[float] = []

    def before(_: Any) -> np.float32:
        time.sleep(plan[now, rank] if now >= 0 else 0.0)
        return np.float32(0)

    def after(_: Any) -> np.float32:
        gradients.append(time.perf_counter())
        return np.float32(0)

    mesh = Mesh(np.array(jax.devices()), ("worker",))
    step = traced_step(mesh, spec["layers"], before, after)
    local = np.random.default_rng(rank).standard_normal((64, WIDTH)).astype(np.float32)
    rows = jax.make_array_from_process_local_data(
        NamedSharding(mesh, P("worker")), local
    )
    weights = jax.device_put(np.eye(WIDTH, dtype=np.float32), NamedSharding(mesh, P()))
    for _ in range(2):
        weights = step(weights, rows).block_until_ready()
    gradients.clear()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(spec["out"], profiler_options=options)
    ends = [time.perf_counter()]
    for now in range(steps):  # callbacks read it
        with jax.profiler.StepTraceAnnotation("train", step_num=now):
            weights = step(weights, rows).block_until_ready()
        ends.append(time.perf_counter())
    jax.profiler.stop_trace()
    print(json.dumps(np.subtract(gradients, ends[:-1]).tolist()), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
