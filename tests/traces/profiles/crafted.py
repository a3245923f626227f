"""Jobs of ranks that compute and meet in collectives, and their traces as profilers
write them.

The clock of each rank is off by seconds, and drifts.
"""

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

OPTIMIZER = 0.002
_OFFSET, _DRIFT = 7.0, 5e-5


class Rank(NamedTuple):
    """What a rank did, in seconds of the true time; `work` is in the order of time.

    Args:
      steps: begins and ends, `[S, 2]`.
      collectives: of all steps, `[S, K, 2]`.
      work: `[n, 2]`.
      chunks: begins, and ends of forward passes, `[S, C, 2]`.
    """

    steps: np.ndarray
    collectives: np.ndarray
    work: np.ndarray
    chunks: np.ndarray


class Job(NamedTuple):
    """Ranks, seconds of own computation, `[S, W]`, and of chunks, `[S, W, C]`."""

    ranks: list[Rank]
    seconds: np.ndarray
    chunks: np.ndarray

    @property
    def loss(self) -> float:
        return loss_of(self.seconds)


def loss_of(times: np.ndarray) -> float:
    return float(1 - times.mean() / times.max(axis=1).mean())


def lengths(steps: int, workers: int, chunks: int, seed: int = 0) -> np.ndarray:
    """Uneven chunks of about 10 ms, `[S, W, C]`; in single steps a worker is slow."""
    rng = np.random.default_rng(seed)
    slow = np.exp(0.6 * (rng.random((steps, workers, 1)) < 0.2))
    return 0.01 * rng.lognormal(0.0, 0.4, (steps, workers, chunks)) * slow


def overlapped(
    chunks: np.ndarray,
    buckets: int = 5,
    *,
    transfer: float = 0.001,
    forward: float = 1 / 3,
    cover: float = 1.0,
) -> Job:
    """DDP: gradients of the last chunk are reduced in buckets while its backward pass
    goes on.

    A chunk has so much of its forward pass. Kernels fill the last part, `cover`, of a
    computation.
    """
    workers = chunks.shape[1]
    now = np.zeros(workers)
    parts: list[list[Any]] = [[[], [], [], []] for _ in range(workers)]
    for seconds in chunks:
        begins = now[:, None] + np.cumsum(seconds, axis=1) - seconds
        done = forward + (1 - forward) * np.arange(1, buckets + 1) / buckets
        ends = begins[:, -1:] + seconds[:, -1:] * done
        end = np.zeros(workers)
        collectives = []
        for bucket in range(buckets):
            begin = np.maximum(ends[:, bucket], end)
            end = np.full(workers, begin.max() + transfer)
            collectives.append(np.stack([begin, end], axis=1))
        for worker, (steps, calls, work, marks) in enumerate(parts):
            marks.append(
                np.stack(
                    [begins[worker], begins[worker] + forward * seconds[worker]], axis=1
                )
            )
            cuts = np.unique(
                np.concatenate([begins[worker], marks[-1][:, 1], ends[worker]])
            )
            lasts = np.diff(cuts)
            work += [
                (b + (1 - cover) * d, b + d)
                for b, d in zip(cuts[:-1], lasts, strict=True)
            ]
            work.append((end[worker], end[worker] + OPTIMIZER))
            steps.append((now[worker], end[worker] + OPTIMIZER))
            calls.append([collective[worker] for collective in collectives])
        now = end + OPTIMIZER
    ranks = [Rank(*map(np.array, part)) for part in parts]
    return Job(ranks, chunks.sum(axis=2) + OPTIMIZER, chunks)


def barriers(seconds: np.ndarray, transfer: float = 0.001) -> Job:
    """All wait for each other after each of K computations: FSDP if K > 1."""
    workers, segments = seconds.shape[1:]
    now = 0.0
    parts: list[list[Any]] = [[[], [], []] for _ in range(workers)]
    for step in seconds:
        for steps, calls, _ in parts:
            steps.append([now, now])
            calls.append([])
        for segment in range(segments):
            end = now + step[:, segment].max() + transfer
            for worker, (steps, calls, work) in enumerate(parts):
                begin = now + step[worker, segment]
                work.append((now, begin))
                calls[-1].append((begin, end))
                steps[-1][1] = end
            now = end
    nothing = np.zeros((len(seconds), 0, 2))
    ranks = [
        Rank(np.array(steps), np.array(calls), np.array(work), nothing)
        for steps, calls, work in parts
    ]
    return Job(ranks, seconds.sum(axis=2), seconds)


def clock(rank: int, times: Any) -> Any:
    """What the rank's own clock says."""
    return (np.asarray(times) + _OFFSET * rank) * (1 + _DRIFT * rank) + 5.0


def write_kineto(
    folder: Path,
    job: Job,
    *,
    shift: tuple[int, ...] = (),
    packed: bool = False,
    **options: Any,
) -> Path:
    """A file a rank, as the PyTorch profiler writes of GPUs: two streams, the host
    ahead.

    `shift` is added to the step numbers of each rank; `options` have more events.
    """
    folder.mkdir(exist_ok=True)
    for number, rank in enumerate(job.ranks):
        events: list[dict[str, Any]] = []
        first = shift[number] if shift else 0
        for step, (begin, end) in enumerate(rank.steps):
            name = f"ProfilerStep#{step + first}"
            events.append(_event(number, "gpu_user_annotation", name, begin, end))
            events.append(
                _event(number, "user_annotation", name, begin - 0.05, begin - 0.001)
            )
        for begin, end in rank.work:
            events.append(
                _event(number, "kernel", "ampere_sgemm_128x64_tn", begin, end)
            )
        for begin, end in rank.collectives.reshape(-1, 2):
            events.append(
                _event(number, "kernel", "ncclDevKernel_AllReduce_Sum_f32", begin, end)
            )
        for begin, end in rank.chunks.reshape(-1, 2):
            name = "DistributedDataParallel.forward"
            events.append(_event(number, "gpu_user_annotation", name, begin, end))
        events += options.get("events", [])
        head = {"schemaVersion": 1, "deviceProperties": [{"id": 0}]}
        world = {"backend": "nccl", "rank": number, "world_size": len(job.ranks)}
        content = json.dumps(
            {**head, "distributedInfo": world, "traceEvents": events}
        ).encode()
        file = folder / f"rank{number}.json{'.gz' * packed}"
        file.write_bytes(gzip.compress(content) if packed else content)
    return folder


def _event(
    rank: int, category: str, name: str, begin: float, end: float
) -> dict[str, Any]:
    begin, end = clock(rank, [begin, end])
    times = {"ts": 1e6 * begin, "dur": 1e6 * (end - begin)}
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": 0,
        "tid": 7,
        **times,
        "args": {},
    }


def write_jax(
    folder: Path,
    job: Job,
    *,
    early: float = 0.0,
    chunks: bool = False,
    marked: bool = True,
) -> Path:
    """A folder a process, as jax.profiler writes: *.trace.json.gz.

    Hosts mark their steps so many seconds `early`. With `chunks` each is a run of
    `jit_gradient`.
    """
    for number, rank in enumerate(job.ranks):
        metadata = {
            "ph": "M",
            "pid": 1,
            "name": "process_name",
            "args": {"name": "/host:CPU"},
        }
        events: list[dict[str, Any]] = [metadata]
        for step, (begin, end) in enumerate(rank.steps):
            if marked:
                mark = {"step_num": str(step)}
                events.append(
                    _operation(number, "train", begin - early, end - early, mark)
                )
            for call in rank.collectives[step]:
                run = _of("step", step, "psum.7")
                events.append(_operation(number, "psum.7", call[0], call[1], run))
            for chunk, (first, _) in enumerate(rank.chunks[step] if chunks else ()):
                run = _of("gradient", 100 * step + chunk, "dot.1")
                events.append(_operation(number, "dot.1", first, first + 1e-4, run))
        for begin, end in rank.work:
            events.append(
                _operation(number, "dot.3", begin, end, _of("step", 0, "dot.3"))
            )
        content = {
            "displayTimeUnit": "ns",
            "metadata": {},
            "traceEvents": [*events, {}],
        }
        place = folder / f"p{number}" / "plugins" / "profile" / "2026_01_01_00_00_00"
        place.mkdir(parents=True)
        packed = gzip.compress(json.dumps(content).encode())
        (place / "vm.trace.json.gz").write_bytes(packed)
    return folder


def _of(function: str, run: int, operation: str) -> dict[str, str]:
    names = {"hlo_module": f"jit_{function}", "hlo_op": operation}
    return {**names, "run_id": str(run), "device_ordinal": "0"}


def _operation(
    rank: int, name: str, begin: float, end: float, arguments: dict[str, str]
) -> dict[str, Any]:
    begin, end = clock(rank, [begin, end])
    times = {"ts": 1e6 * begin, "dur": 1e6 * (end - begin)}
    return {"ph": "X", "pid": 1, "tid": 2, "name": name, **times, "args": arguments}
