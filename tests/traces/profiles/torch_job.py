"""A rank of a DDP job, traced: `python -m tests.traces.profiles.torch_job SPEC`.

It prints its own seconds of each step by its own clock: from the begin of the step to
the end of the backward pass, as far as the input's gradient.
"""

import contextlib
import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, schedule

from bcgc_jax.traces.recorder import record_ddp

WIDTH, WARM_UP = 256, 2


class _Sleep(torch.autograd.Function):
    """Half before the forward pass goes on, half before the backward pass does."""

    @staticmethod
    def forward(ctx: Any, rows: Any, seconds: float) -> Any:
        ctx.seconds = seconds
        time.sleep(seconds / 2)
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        time.sleep(ctx.seconds / 2)
        return gradient, None


class _Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            [torch.nn.Linear(WIDTH, WIDTH) for _ in range(6)]
        )

    def forward(self, rows: Any, seconds: float) -> Any:
        for number, layer in enumerate(self.layers):
            rows = torch.tanh(layer(rows))
            if number % 2 == 0:
                rows = _Sleep.apply(rows, seconds / 3)
        return rows


def main(spec: dict[str, Any]) -> None:
    rank, workers, steps, chunks = (
        spec[name] for name in ("rank", "workers", "steps", "chunks")
    )
    host, port = spec["address"].split(":")
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=port)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    model = torch.nn.parallel.DistributedDataParallel(_Net(), bucket_cap_mb=0.3)
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    if spec.get("log"):
        record_ddp(model, spec["log"])
    slow = np.random.default_rng(0).random((steps, workers, chunks)) < 0.25
    rows = torch.randn(32, WIDTH)
    marks: list[float] = []
    own_seconds = []
    with profile(
        activities=[ProfilerActivity.CPU],
        schedule=schedule(wait=0, warmup=WARM_UP, active=steps - WARM_UP),
        on_trace_ready=lambda done: done.export_chrome_trace(
            f"{spec['out']}/rank{rank}.json"
        ),
    ) as profiler:
        begun = time.perf_counter()
        for step in range(steps):
            for chunk in range(chunks):
                inputs = rows.clone().requires_grad_()
                inputs.register_hook(lambda _: marks.append(time.perf_counter()))
                last = chunk == chunks - 1
                with contextlib.nullcontext() if last else model.no_sync():
                    seconds = (
                        0.12 / chunks if slow[step, rank, chunk] else 0.01 / chunks
                    )
                    model(inputs, seconds).square().sum().backward()
            own_seconds.append(marks[-1] - begun)
            begun = time.perf_counter()
            optimizer.step()
            optimizer.zero_grad()
            profiler.step()
    print(json.dumps(own_seconds), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
