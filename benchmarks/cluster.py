"""Worker processes: the master beside a bare loop over Ray."""

import functools
import heapq
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax.cluster import Cluster
from bcgc_jax.cluster.engine import load_ray
from bcgc_jax.coding.gradients import coding_plan, split_unevenly
from bcgc_jax.steps.chunk_lengths import chunk_sizes
from bcgc_jax.steps.ledger import Ledger
from bcgc_jax.steps.paces import Paces, hand_out
from bcgc_jax.steps.placement import spread
from benchmarks.timing import compare, result_row

# Numbers of workers that share.
SHARERS = (16, 64, 256)
_WORKERS = 8
_BLOCKS = 8
_SIZE = 1000  # float32 of a block: 4 kB


def mean_product(params: Any, batch: Any) -> Any:
    """A loss that costs next to nothing: what is left is the engine."""
    return jnp.mean(batch @ params)


def cluster() -> list[dict[str, Any]]:
    """An iteration on processes, N = 8, 8 blocks of 4 kB, against a bare Ray loop."""
    params = jnp.zeros(_BLOCKS * _SIZE, jnp.float32)
    data = np.ones((2 * _WORKERS, _BLOCKS * _SIZE), np.float32)
    exact = jax.grad(mean_product)(params, data)
    against = "a Ray loop that takes as many messages of the same size from all workers"
    rows = []
    with Cluster(_WORKERS) as running:
        bare = _bare_loop(load_ray())
        uncoded = [_BLOCKS * _SIZE] + [0] * (_WORKERS - 1)
        for name, counts in {
            "all levels": [_SIZE] * _BLOCKS,
            "uncoded": uncoded,
        }.items():
            plan = coding_plan(jax.random.key(0), params, np.array(counts))
            running.assign(mean_product, plan, params, split_unevenly(data, _WORKERS))
            peer = bare[len(plan.blocks)]
            results = compare(
                {"package": lambda: running.gradient(params).gradient, "peer": peer},
                100,
            )
            error = float(
                jnp.max(jnp.abs(results["package"].value - exact))
                / jnp.max(jnp.abs(exact))
            )
            what = f"an iteration, N={_WORKERS}, {len(plan.blocks)} blocks ({name})"
            accuracy = (
                f"relative error of the gradient {error:.0e}; computation and decoding "
                "included"
            )
            row = result_row(
                *("cluster", what, results, accuracy, {"error": error}),
                against=against,
                dtype="float32",
            )
            rows.append(row)
    return rows


def _bare_loop(ray: Any) -> dict[int, Callable[[], int]]:
    """An iteration's messages by nothing but Ray: 8 blocks of 4 kB, or one of 32."""

    class Sender:
        def send(self, blocks: int, params: Any) -> Any:
            for block in range(blocks):
                yield block, np.zeros(_BLOCKS * _SIZE // blocks, np.float32)

    actors = [ray.remote(Sender).options(num_cpus=0).remote() for _ in range(_WORKERS)]
    params = [np.zeros(_BLOCKS * _SIZE, np.float32)]

    def loop(blocks: int) -> int:
        waiting = [
            a.send.options(num_returns="streaming").remote(blocks, params)
            for a in actors
        ]
        answers = 0
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            try:
                ray.get(next(ready[0]))
            except StopIteration:
                continue
            answers += 1
            waiting.append(ready[0])
        return answers

    return {blocks: functools.partial(loop, blocks) for blocks in (1, _BLOCKS)}


def hand_outs() -> list[dict[str, Any]]:
    """Time the master's decisions in a step of sharing:2:8, beside Ray's calls."""
    rows = []
    ray = load_ray()
    with Cluster(1):  # Ray runs
        actor = ray.remote(_Idle).options(num_cpus=0).remote()
        for workers in SHARERS:
            count = shared_step(workers)
            package = functools.partial(shared_step, workers)
            peer = functools.partial(_calls, ray, actor, count)
            results = compare({"package": package, "peer": peer}, 5, time.process_time)
            seconds = results["package"].seconds["median"] / count
            accuracy = f"{1 / seconds:.0f} hand-outs a second of the processor"
            what = f"{count} hand-outs, N={workers}"
            row = result_row(
                *("hand_outs", what, results, accuracy, {"error": 0.0}),
                against="calls of a Ray actor that does nothing, one by one",
            )
            rows.append(row)
    return rows


class _Idle:
    def answer(self) -> None:
        pass


def _calls(ray: Any, actor: Any, count: int) -> None:
    for _ in range(count):
        ray.get(actor.answer.remote())


def shared_step(workers: int) -> int:
    """Play the master's part of a step of unlike workers; return how many chunks."""
    sizes = chunk_sizes(8)
    pace = np.random.default_rng(0).exponential(size=workers) + 0.05
    handout = Ledger(0, spread(workers, 2, len(sizes)), [sizes] * workers)
    timing = Paces(workers)
    free = set(range(workers))
    busy = list[Any]()
    now = 0.0
    count = 0
    while not handout.complete:
        for worker in timing.overdue(now, handout.voided):
            handout.late(worker)
        for worker, ticket, chunk in hand_out(handout, timing, free, now):
            heapq.heappush(
                busy, (now + pace[worker] * handout.queue.weight(chunk), worker, ticket)
            )
            free.remove(worker)
            count += 1
        timing.next_look(
            now,
            handout.voided,
            {w: handout.begun(w) for w in handout.may_be_given(free)},
        )
        now, worker, ticket = heapq.heappop(busy)
        timing.ended(worker, now)
        handout.done(handout.member(worker), ticket)
        free.add(worker)
    return count
