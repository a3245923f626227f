"""Repeated timing of functions, interleaved, with all they return ready; and the rows of the results."""

import datetime
import functools
import importlib.metadata
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np


class Measured(NamedTuple):
    """`seconds`: first_call, compile (first call minus median), median, best; `value`: what was returned."""

    seconds: dict[str, float]
    value: Any
    repeats: int = 1


def measured(first: float, later: Sequence[float], value: Any = None) -> Measured:
    """Of the seconds of a first call and of those after it."""
    median = statistics.median(later)
    compiled = {"first_call": first, "compile": max(first - median, 0.0)}
    return Measured(compiled | {"median": median, "best": min(later)}, value, len(later))


def compare(functions: Mapping[str, Callable[[], Any]], repeats: int = 15) -> dict[str, Measured]:
    """Time a first call of each, from empty compilation caches, then `repeats` interleaved calls."""
    jax.clear_caches()  # what was measured before must not have compiled a part of this
    first: dict[str, float] = {}
    for name, function in functions.items():
        start = time.perf_counter()
        jax.block_until_ready(function())
        first[name] = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    values: dict[str, Any] = {}
    for i in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            value = jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
            if i == repeats - 1:
                values[name] = value
            del value  # it may be large: the next call must find the memory free
    return {name: measured(first[name], runs, values[name]) for name, runs in seconds.items()}


def in_float64(measure: Callable[[], Iterable[dict[str, Any]]]) -> Callable[[], list[dict[str, Any]]]:
    """A measure whose rows are all of float64."""

    @functools.wraps(measure)
    def rows() -> list[dict[str, Any]]:
        with jax.enable_x64(True):
            return list(measure())

    return rows


def result_row(
    measure: str,
    what: str,
    found: Mapping[str, Measured],
    accuracy: str,
    figures: Mapping[str, float | None],
    *,
    against: str = "",
    peer: str = "peer",
    dtype: str = "float64",
) -> dict[str, Any]:
    """A row of the results: the "package" of what was found, and beside it a `peer` where one is named.

    `figures` has `gap` or `error`, and whatever else is worth a key.
    """
    package, beside = found["package"], found[peer if against else "package"]
    row: dict[str, Any] = {"measure": measure, "what": what, "dtype": dtype, "package": package.seconds}
    if against:
        ratio = beside.seconds["median"] / package.seconds["median"]
        row |= {"against": against, "peer": beside.seconds, "ratio": ratio}
    numbers = {name: _finite(figure) for name, figure in figures.items()}
    return row | {"repeats": beside.repeats, **numbers, "accuracy": accuracy}


def curve_point(curve: str, x_name: str, x: int, package: Measured, gap: float) -> dict[str, Any]:
    """A point of a scaling curve: median seconds at `x`, and the relative gap or error reached there."""
    seconds = {"seconds": package.seconds["median"], "first_call": package.seconds["first_call"]}
    place = {"curve": curve, "x_name": x_name, "x": x}
    return place | seconds | {"gap": _finite(gap), "dtype": "float64", "repeats": package.repeats}


def _finite(figure: float | None) -> float | None:
    """JSON has neither inf nor NaN."""
    return figure if figure is not None and math.isfinite(figure) else None


def usable_cores() -> int:
    """Of this machine, those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> float:
    """Peak resident memory of this process, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says starts from the peak of the process that started this one
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(peak.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def environment() -> dict[str, Any]:
    """Device and versions, to be kept beside every figure."""
    device = jax.devices()[0]
    facts = {
        "device": f"{device.platform}: {device.device_kind}",
        "device_count": jax.device_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": usable_cores(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    for name in ("jax", "jaxlib", "scipy"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = None
    return facts | {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
