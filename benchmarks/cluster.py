"""Worker processes: the master beside a bare loop over Ray."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax.cluster import Cluster
from bcgc_jax.cluster.engine import load_ray
from bcgc_jax.coding.gradients import coding_plan, split_unevenly
from benchmarks.timing import compare, result_row

_WORKERS, _BLOCKS, _SIZE = 8, 8, 1000  # blocks of 1000 float32: 4 kB


def mean_product(params: Any, batch: Any) -> Any:
    """A loss that costs next to nothing: what is left is the engine."""
    return jnp.mean(batch @ params)


def cluster() -> list[dict[str, Any]]:
    """Overhead of an iteration on processes, N = 8, 8 blocks of 4 kB, against a bare Ray loop."""
    params = jnp.zeros(_BLOCKS * _SIZE, jnp.float32)
    data = np.ones((2 * _WORKERS, _BLOCKS * _SIZE), np.float32)
    exact = jax.grad(mean_product)(params, data)
    against = "a Ray loop that takes as many messages of the same size from all workers"
    rows = []
    with Cluster(_WORKERS) as running:
        bare = _bare_loop(load_ray())
        uncoded = [_BLOCKS * _SIZE] + [0] * (_WORKERS - 1)
        for name, counts in {"all levels": [_SIZE] * _BLOCKS, "uncoded": uncoded}.items():
            plan = coding_plan(jax.random.key(0), params, np.array(counts))
            running.assign(mean_product, plan, params, split_unevenly(data, _WORKERS))
            peer = bare[len(plan.blocks)]
            found = compare({"package": lambda: running.gradient(params).gradient, "peer": peer}, 100)
            error = float(jnp.max(jnp.abs(found["package"].value - exact)) / jnp.max(jnp.abs(exact)))
            what = f"an iteration, N={_WORKERS}, {len(plan.blocks)} blocks ({name})"
            accuracy = f"relative error of the gradient {error:.0e}; computation and decoding included"
            given = "cluster", what, found, accuracy, {"error": error}
            rows.append(result_row(*given, against=against, dtype="float32"))
    return rows


def _bare_loop(ray: Any) -> dict[int, Callable[[], int]]:
    """The messages of an iteration by nothing but Ray: 8 blocks of 4 kB, or one of 32 kB."""

    class Sender:
        def send(self, blocks: int, params: Any) -> Any:
            for block in range(blocks):
                yield block, np.zeros(_BLOCKS * _SIZE // blocks, np.float32)

    actors = [ray.remote(Sender).options(num_cpus=0).remote() for _ in range(_WORKERS)]
    params = [np.zeros(_BLOCKS * _SIZE, np.float32)]

    def loop(blocks: int) -> int:
        waiting = [a.send.options(num_returns="streaming").remote(blocks, params) for a in actors]
        taken = 0
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            try:
                ray.get(next(ready[0]))
            except StopIteration:
                continue
            taken += 1
            waiting.append(ready[0])
        return taken

    return {blocks: functools.partial(loop, blocks) for blocks in (1, _BLOCKS)}
