"""Read traces of the PyTorch profiler (Kineto), one file per rank."""

import functools
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcgc_jax.traces.profiles.events import Event, Events
from bcgc_jax.traces.profiles.recording import Recording, unknown_chunk
from bcgc_jax.traces.profiles.spans import Spans, exposed

FORWARD = "DistributedDataParallel.forward"
# Step number of events before the first marked step.
_BEFORE = -1
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_COLLECTIVE = re.compile(
    r"nccl|rccl|gloo:|all_?reduce|reduce_?scatter|all_?gather", re.IGNORECASE
)
_PAIR = re.compile(r"nccl.*send|nccl.*recv|gloo:send|gloo:recv", re.IGNORECASE)


class _Side:
    """Recorded spans of the host or of the device, in seconds."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int]] = []
        self.collectives: list[tuple[float, float]] = []
        self.chunks: list[tuple[float, float]] = []
        # How often other ranges occur that the training loop has named.
        self.names: Counter[str] = Counter()
        self.work = Spans()


class Kineto(NamedTuple):
    """A recording, and the job's number of ranks if the file contains it."""

    recording: Recording
    world_size: int | None


def read(path: str, chunk_name: str | None = None) -> Kineto:
    """Read the trace of one rank.

    A chunk begins at each range `chunk_name`, by default at DDP's forward pass. If the
    trace has kernels, all times are from the device, otherwise from the host.

    Raises:
      ValueError: If the file does not show how long the rank waits, or if it has no
        range `chunk_name`.
    """
    events = Events(path)
    host, device = _Side(), _Side()
    for event in events:
        if event.phase == "X":
            _add(event, host, device, chunk_name or FORWARD, path)
    side = host
    if len(device.work):
        side = device
        # Old versions of PyTorch annotate only the host.
        side.steps = device.steps or host.steps
        side.chunks = device.chunks or host.chunks
    if chunk_name is not None and not side.chunks:
        raise unknown_chunk(path, chunk_name, device.names or host.names)
    distributed = events.head.get("distributedInfo") or {}
    rank = distributed.get("rank")
    if rank is None:
        name = Path(path).name.partition(".")[0]
    else:
        name = str(rank)
    return Kineto(_recording(side, name, path), distributed.get("world_size"))


def _add(event: Event, host: _Side, device: _Side, chunk_name: str, path: str) -> None:
    _, name, category, begin, end, *_ = event
    side = host
    if category.startswith("gpu_") or category == "kernel":
        side = device
    if name == chunk_name:
        side.chunks.append((begin, end - begin))
    elif name.startswith("ProfilerStep#"):
        side.steps.append((begin, int(name.partition("#")[2])))
    elif category in _ON_DEVICE or name.startswith("gloo:"):
        kind = _kind(name)
        if kind == "pair":
            raise ValueError(
                f"{path}: the rank sends to single ranks ({name[:40]}), for example as "
                "a stage of a pipeline or to experts. Its times blocked in collectives "
                "therefore do not show its compute time. Use traces of pure data "
                "parallelism."
            )
        if kind == "collective":
            side.collectives.append((begin, end))
        else:
            side.work.add(begin, end)
    elif category == "cpu_op" and not name.startswith("c10d::"):
        side.work.add(begin, end)
    elif category.endswith("user_annotation") and _kind(name) == "work":
        side.names[name] += 1


@functools.lru_cache(maxsize=4096)
def _kind(name: str) -> str:
    """Classify a kernel, or a call of gloo, by its name, which repeats often."""
    if _PAIR.search(name):
        return "pair"
    if _COLLECTIVE.search(name):
        return "collective"
    return "work"


def _recording(side: _Side, name: str, path: str) -> Recording:
    if not side.collectives:
        raise ValueError(
            f"{path} has no collective (NCCL, gloo) of rank {name}. Profile steps of "
            "data-parallel training."
        )
    if not side.steps:
        raise ValueError(
            f"{path} has no ProfilerStep#. Pass `schedule=` to `torch.profiler.profile`"
            ", and call `profiler.step()` after each step."
        )
    steps = sorted(side.steps)
    begins, numbers = (np.array(part) for part in zip(*steps, strict=True))
    collectives = np.array(sorted(side.collectives))
    chunks = np.array(sorted(side.chunks)).reshape(-1, 2)

    def step_at(times: np.ndarray) -> np.ndarray:
        place = np.searchsorted(begins, times, "right") - 1
        return np.where(place < 0, _BEFORE, numbers[place])

    step = step_at(collectives[:, 0])
    within = step != _BEFORE
    return Recording(
        rank=name,
        step=step[within],
        end=collectives[within, 1],
        exposed=exposed(collectives, side.work.union())[within],
        chunk_step=step_at(chunks[:, 0]),
        begin=chunks[:, 0],
        forward=chunks[:, 1],
    )
