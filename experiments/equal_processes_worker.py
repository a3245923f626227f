"""Run a PyTorch process of `experiments.equal_processes`, without JAX."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from bcgc_jax.balancing import dispatch
from bcgc_jax.balancing.dispatch import Chunk

CHUNKS = 8  # of a subset
SAMPLES = 240  # of a step
WIDTH = 64


def train(spec: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds per step of each block of steps, without and with a coordinator.

    Blocks alternate, so that both kinds meet the same machine.
    """
    rank, workers = spec["rank"], spec["workers"]
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", spec["port"], workers, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    _block(spec, lambda step: _own_chunks(step, rank))
    for port in spec["ports"]:
        seconds["without"].append(_block(spec, lambda step: _own_chunks(step, rank)))
        with contextlib.ExitStack() as stack:
            if rank == 0:
                stack.enter_context(dispatch.serve(workers, port=port))
            share = stack.enter_context(
                contextlib.closing(dispatch.join(("127.0.0.1", port), rank))
            )
            seconds["with"].append(_block(spec, share.step))
    dist.destroy_process_group()
    return seconds


def _own_chunks(step: int, rank: int) -> Iterator[Chunk]:
    """The chunks of a worker's own subset, without a coordinator."""
    edges = [number / CHUNKS for number in range(CHUNKS + 1)]
    return (
        Chunk(step, rank, number, *edges[number : number + 2])
        for number in range(CHUNKS)
    )


def _block(spec: dict[str, Any], chunks: Callable[[int], Iterable[Chunk]]) -> float:
    """Seconds per step. Each chunk sleeps, as if an accelerator computed it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(WIDTH, 1)
    rows = torch.randn(SAMPLES, WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    dist.barrier()
    began = time.perf_counter()
    for step in range(spec["steps"]):
        model.zero_grad(set_to_none=False)
        for chunk in chunks(step):
            time.sleep(spec["chunk"])
            part = rows[list(chunk.rows(SAMPLES, spec["workers"]))]
            model(part).square().sum().backward()
        slopes = [
            torch.zeros_like(param) if param.grad is None else param.grad
            for param in model.parameters()
        ]
        total = torch.cat([slope.flatten() for slope in slopes])
        dist.all_reduce(total)
        optimizer.step()
    return (time.perf_counter() - began) / spec["steps"]


if __name__ == "__main__":
    print(json.dumps(train(json.loads(sys.argv[1]))))
