"""A small file of measured times: laws of equally many atoms share their programs."""

from pathlib import Path
from typing import Any

import numpy as np

from bcgc_jax.traces.trace import Trace

TIMES = (
    np.random.default_rng(3).gamma(3.0, size=(6, 4)) * [0.5, 2.5, 0.7, 0.6] + 0.2
).round(6)


def trace_of(times: np.ndarray, **fields: Any) -> Trace:
    step, worker = np.nonzero(np.isfinite(times))
    steps, workers = (np.arange(n).astype(str) for n in times.shape)
    cut = np.zeros(step.size, bool)
    return Trace(steps, workers, step, worker, times[step, worker], cut)._replace(
        **fields
    )


def written(path: Path, times: np.ndarray = TIMES) -> str:
    cells = np.ndenumerate(times)
    rows = [
        f"{step},{worker},{time:.9f}"
        for (step, worker), time in cells
        if np.isfinite(time)
    ]
    path.write_text("\n".join(["step,worker,seconds", *rows]))
    return str(path)


def written_in_parts(
    path: Path,
    seconds: np.ndarray,
    forward: float = 0.25,
    load: np.ndarray | None = None,
) -> str:
    """Microbatches, `[S, W, C]`, with a forward pass of this share; loads may be."""
    cells = np.ndenumerate(seconds)
    rows = [f"{s},{w},{c},{time:.9f},{forward * time:.9f}" for (s, w, c), time in cells]
    header = "step,worker,chunk,seconds,forward_seconds"
    if load is not None:
        header += ",load"
        rows = [
            f"{row},{value}"
            for row, value in zip(rows, load.ravel().tolist(), strict=True)
        ]
    path.write_text("\n".join([header, *rows]))
    return str(path)
