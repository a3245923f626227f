"""A process of a program over three, with JSON in and out:
`python -m tests.balancing.compiled.processes SPEC`.

Each process has two devices, and is a worker. Process 0 serves.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from bcgc_jax.balancing.compiled import SharedWork
from bcgc_jax.balancing.dispatch import Chunk, Share, join, serve
from tests.waiting import comes_true

WORKERS, SAMPLES, WIDTH = 3, 96, 8
INPUTS = np.random.default_rng(0).standard_normal((SAMPLES, WIDTH)).astype(np.float32)
WEIGHTS = np.eye(WIDTH, dtype=np.float32)


def loss(weights: Any, rows: Any) -> Any:
    return jnp.mean(jnp.sum(jnp.tanh(jnp.tanh(rows @ weights) @ weights), -1))


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def dying(share: Share) -> Callable[..., Iterator[tuple[Chunk, ...]]]:
    """In place of the share's `runs`: the process dies with its first chunk, in the
    first step in which it has one.
    """
    runs_of = share.runs

    def runs(step: int, loads: Any = None) -> Iterator[tuple[Chunk, ...]]:
        for run in runs_of(step, loads):
            yield run
            os._exit(1)

    return runs


def raising(step: int, loads: Any = None) -> Iterator[tuple[Chunk, ...]]:
    """In place of a share's `runs`: the loader raises before the first chunk."""
    raise OSError("the disk is gone")


def main(spec: dict[str, Any]) -> None:
    rank = spec["rank"]
    jax.distributed.initialize(spec["address"], WORKERS, rank)
    mesh = jax.make_mesh(
        (WORKERS, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2
    )
    address = "127.0.0.1", spec["port"]
    with contextlib.ExitStack() as stack:
        if rank == 0:
            stack.enter_context(
                serve(
                    WORKERS,
                    2,
                    4,
                    port=spec["port"],
                    key="key",
                    timeout=20.0,
                    adapt=False,
                )
            )
        share = join(address, rank, key="key")
        shared = SharedWork(mesh, shares={rank: share})
        gradient = jax.jit(shared.value_and_grad(loss))
        rows = shared.place(INPUTS)
        expected = jax.grad(loss)(WEIGHTS, INPUTS)
        step, ok = 0, True
        while step < spec["steps"] and (ok or "raises" in spec):
            if ok and spec.get("dies") == [rank, step]:
                share.runs = dying(share)  # type: ignore[method-assign]
            if ok and spec.get("raises") == [rank, step]:
                share.runs = raising  # type: ignore[method-assign, assignment]
            if spec.get("dies_between") == [rank, step]:
                os._exit(1)
            began = time.perf_counter()
            _, slope, ok = gradient(WEIGHTS, rows, step)
            ok = bool(ok)
            seconds = time.perf_counter() - began
            error = float(np.abs(np.asarray(slope) - expected).max()) if ok else 0.0
            why = "" if ok else str(shared.error)
            say(step=step, ok=ok, error=error, seconds=seconds, why=why)
            step += ok
            if not ok and spec.get("raises") == [rank, step]:
                shared.reset({rank: join(address, rank, key="key")})
        sys.stdout.flush()
        if "folder" in spec:
            # The coordinator is there until the other survivor has its answer.
            folder = Path(spec["folder"])
            (folder / str(rank)).touch()
            comes_true((folder / str(1 - rank)).exists)
            os._exit(0)  # JAX waits for all processes at its end


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
