"""Run a process of `experiments.compiled`, whose chunks sleep and multiply matrices.

`python -m experiments.compiled_worker SPEC` prints the seconds of each step, and the
largest error.
"""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.buffer_callback import buffer_callback
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bcgc_jax.balancing.compiled import SharedWork
from bcgc_jax.balancing.compiled.tracing import varying
from bcgc_jax.balancing.dispatch import Share, join, serve

WORKERS = 4
CHUNKS = 8
WIDTH = 64
SAMPLES = WORKERS * CHUNKS * 4 * 4
INPUTS = np.random.default_rng(0).standard_normal((SAMPLES, WIDTH)).astype(np.float32)
WEIGHTS = (np.eye(WIDTH) + 0.01).astype(np.float32)


def paces(kind: str, seed: int, steps: int, subset: float) -> np.ndarray:
    """Seconds of workers for a subset, `[steps, N]`, five times in a seventh."""
    slow = np.random.default_rng(seed).random((steps, WORKERS)) < (
        1 / 7 if kind == "slow" else 0
    )
    return subset * np.where(slow, 5.0, 1.0)


def loss_with_nap(seconds: np.ndarray, rank: int | None) -> Callable[..., Any]:
    """A loss whose chunk takes `seconds[step, worker]` for a subset, whoever's subset
    it is.

    The nap is in the backward pass, behind the matrix products.
    """

    def sleep(context: Any, zero: Any, place: Any, share: float) -> None:
        step, worker = np.asarray(place).tolist()
        time.sleep(seconds[step, worker] * share)
        np.asarray(zero)[...] = 0

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def late(share: float, x: Array, place: Array) -> Array:
        return x

    def backward(share: float, place: Any, slope: Array) -> Any:
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        # `pure_callback` would take Python longer, and all devices of a process wait
        # for Python.
        zero = buffer_callback(functools.partial(sleep, share=share), shape)(place)
        if rank is None:
            zero = varying(zero, "data")
        return slope + zero, None

    late.defvjp(lambda share, x, place: (x, place), backward)

    def loss(weights: Array, rows: Any) -> Array:
        inputs, step = rows
        if rank is not None:
            worker = jnp.int32(rank)
        else:
            worker = lax.axis_index("data")
        share = len(inputs) * WORKERS / SAMPLES
        weights = late(share, weights, jnp.stack([step[0], worker]))
        return jnp.mean(jnp.sum(jnp.tanh(jnp.tanh(inputs @ weights) @ weights), -1))

    return loss


def plain(weights: Array, inputs: Any) -> Array:
    return jnp.mean(jnp.sum(jnp.tanh(jnp.tanh(inputs @ weights) @ weights), -1))


def uncoded(mesh: Mesh, loss: Callable[..., Any]) -> Callable[..., Any]:
    """Each worker computes the chunks of its own subset in a loop, then one sum."""

    def run(weights: Array, rows: Any, step: Any) -> Any:
        weights = varying(weights, "data")
        parts = jax.tree.map(lambda x: x.reshape(CHUNKS, -1, *x.shape[1:]), rows)
        total, _ = lax.scan(
            lambda total, part: (total + jax.grad(loss)(weights, part), None),
            jnp.zeros_like(weights),
            parts,
        )
        return lax.psum(total, "data") / (WORKERS * CHUNKS), jnp.bool_(True)

    specs = P(), P("data"), P()
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(P(), P()))


def compiled(spec: dict[str, Any], shares: dict[int, Share] | None) -> list[float]:
    """Seconds of the steps of one program over all devices."""
    mesh = jax.make_mesh((WORKERS,), ("data",), axis_types=(AxisType.Auto,))
    seconds = paces(spec["kind"], spec["seed"], spec["steps"], spec["subset"])
    loss = loss_with_nap(seconds, None)
    stored = spec["stored"]
    adapt = spec.get("adapt", False)
    shared = SharedWork(
        mesh, shares=shares, max_subsets=stored, chunks=CHUNKS, adapt=adapt
    )
    gradient = shared.value_and_grad(loss)
    if stored == 1:
        program = jax.jit(uncoded(mesh, loss))
    else:
        program = jax.jit(lambda *arguments: gradient(*arguments)[1:])
    inputs = shared.place(INPUTS)

    def step_of(step: int) -> Any:
        numbers = shared.place(np.full(SAMPLES, step, np.int32))
        return program(WEIGHTS, (inputs, numbers), step)

    return timed(step_of, spec["steps"])


def in_python(spec: dict[str, Any], share: Share) -> list[float]:
    """Seconds of steps of Python loops whose sums meet in a program."""
    rank = spec["rank"]
    seconds = paces(spec["kind"], spec["seed"], spec["steps"], spec["subset"])
    slope = jax.jit(jax.grad(loss_with_nap(seconds, rank)))
    mesh = jax.make_mesh((WORKERS,), ("data",), axis_types=(AxisType.Auto,))
    put = NamedSharding(mesh, P("data"))
    add = jax.jit(lambda parts: parts.sum(0), out_shardings=NamedSharding(mesh, P()))

    def step_of(step: int) -> Any:
        total = jnp.zeros_like(WEIGHTS)
        for chunk in share.step(step):
            rows = np.array(chunk.rows(SAMPLES, WORKERS))
            part = slope(WEIGHTS, (INPUTS[rows], np.full(len(rows), step, np.int32)))
            total = jax.block_until_ready(total + part * (len(rows) / SAMPLES))
        parts = jax.make_array_from_process_local_data(put, np.asarray(total)[None])
        return add(parts), True

    return timed(step_of, spec["steps"])


def timed(step_of: Callable[[int], Any], steps: int) -> list[float]:
    """Seconds of each step after the first, which compiles; an error ends the study."""
    exact = np.asarray(jax.grad(plain)(WEIGHTS, INPUTS))
    ends = []
    for step in range(steps):
        slope, ok = step_of(step)
        error = float(np.abs(np.asarray(slope) - exact).max() / np.abs(exact).max())
        if not ok or error > 1e-5:
            raise RuntimeError(
                f"step {step}: the gradient is not exact, error {error:.2g}"
            )
        ends.append(time.perf_counter())
    return np.diff(ends).tolist()


def main(spec: dict[str, Any]) -> list[float]:
    if spec["processes"] == 1:
        return compiled(spec, None)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    rank = spec["rank"]
    jax.distributed.initialize(f"127.0.0.1:{spec['ports'][0]}", WORKERS, rank)
    address = "127.0.0.1", spec["ports"][1]
    stored = spec["stored"]
    with contextlib.ExitStack() as stack:
        if rank == 0:
            adapt = spec.get("adapt", False)
            server = serve(
                WORKERS, stored, CHUNKS, port=address[1], key="key", adapt=adapt
            )
            stack.enter_context(server)
        share = stack.enter_context(join(address, rank, key="key"))
        if spec["loop"]:
            loop = in_python(spec, share)
        else:
            loop = compiled(spec, {rank: share})
    return loop


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)
