"""Worker processes: the master beside a bare loop over Ray, and a thousand iterations with faults."""

import functools
import os
import signal
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bcgc_jax as bcgc
from bcgc_jax.cluster import Cluster, train_on_cluster
from bcgc_jax.cluster.engine import load_ray
from bcgc_jax.coding.gradients import coding_plan, split_unevenly
from benchmarks.planning import LAW
from benchmarks.timing import compare, result_row

_WORKERS, _BLOCKS, _SIZE = 8, 8, 1000  # blocks of 1000 float32: 4 kB
_ITERATIONS = 1000


def mean_product(params: Any, batch: Any) -> Any:
    """A loss that costs next to nothing: what is left is the engine."""
    return jnp.mean(batch @ params)


def squares(params: Any, batch: Any) -> Any:
    """Linear regression, in float32."""
    x, y = batch
    return jnp.mean((x @ params - y) ** 2)


def cluster() -> list[dict[str, Any]]:
    """Overhead of an iteration on processes, N = 8, 8 blocks of 4 kB, against a bare Ray loop."""
    params = jnp.zeros(_BLOCKS * _SIZE, jnp.float32)
    data = np.ones((2 * _WORKERS, _BLOCKS * _SIZE), np.float32)
    rows = []
    with Cluster(_WORKERS) as running:
        bare = _bare_loop(load_ray())
        for what, counts in (
            ("all levels", [_SIZE] * _BLOCKS),
            ("uncoded", [_BLOCKS * _SIZE] + [0] * (_WORKERS - 1)),
        ):
            plan = coding_plan(jax.random.key(0), params, np.array(counts))
            running.assign(mean_product, plan, params, split_unevenly(data, _WORKERS))
            repeats = 100
            result = compare(
                {"package": lambda: running.gradient(params).gradient, "bare loop": bare[len(plan.blocks)]},
                repeats,
            )
            exact = jax.grad(mean_product)(params, data)
            error = float(jnp.max(jnp.abs(result["package"].value - exact)) / jnp.max(jnp.abs(exact)))
            rows.append(
                result_row(
                    "cluster",
                    f"an iteration, N={_WORKERS}, {len(plan.blocks)} blocks ({what})",
                    result["package"],
                    f"relative error of the gradient {error:.0e}; computation and decoding included",
                    peer=result["bare loop"],
                    against="a Ray loop that takes as many messages of the same size from all workers",
                    dtype="float32",
                    repeats=repeats,
                    error=error,
                )
            )
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


def cluster_faults() -> list[dict[str, Any]]:
    """A thousand iterations with a worker killed every hundred, against the same without."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 200)).astype(np.float32)
    data = (x, (x @ rng.normal(size=200)).astype(np.float32))
    params = jnp.zeros(200, jnp.float32)
    problem = bcgc.Problem(LAW, _WORKERS, 200, 64)
    memory: list[tuple[int, float, float]] = []

    def run(*, faults: bool) -> Any:
        with Cluster(_WORKERS) as running:

            def before(step: int, running: Cluster) -> None:
                if faults and step and step % 100 == 0:
                    pid = running.pids[step // 100 % _WORKERS]
                    assert pid is not None
                    os.kill(pid, signal.SIGKILL)
                if faults and step % 100 == 99:
                    workers = [_resident(pid) for pid in running.pids if pid is not None]
                    memory.append((step, _resident(os.getpid()), max(workers)))

            return train_on_cluster(
                key=jax.random.key(0),
                cluster=running,
                loss=squares,
                problem=problem,
                params=params,
                data=data,
                optimizer=optax.sgd(1e-2),
                num_steps=_ITERATIONS,
                before_step=before,
            )

    result = compare({"package": lambda: run(faults=True), "without": lambda: run(faults=False)}, 1)
    found, without = (result[name].value for name in ("package", "without"))
    error = float(jnp.max(jnp.abs(found.params - without.params)) / jnp.max(jnp.abs(without.params)))
    # From the second hundred on: the first has what is compiled and cached.
    (_, first, first_worker), (_, last, last_worker) = memory[1], memory[9]
    faults = sum(f.what == "died" for f in found.faults)
    return [
        result_row(
            "cluster_faults",
            f"{_ITERATIONS} iterations, N={_WORKERS}, a worker killed every 100",
            result["package"],
            f"{faults} workers lost; parameters differ by {error:.0e}; memory from iteration 200 to 1000: "
            f"master {first:.0f} to {last:.0f} MB, largest worker {first_worker:.0f} to {last_worker:.0f} MB",
            peer=result["without"],
            against="the same without faults",
            dtype="float32",
            repeats=1,
            error=error,
            growth=last / first - 1,
        )
    ]


def _resident(pid: int) -> float:
    """Resident memory of a process, in MB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
