"""Repeated timing of functions, interleaved, with all they return ready; and the rows of the results."""

import datetime
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Measured(NamedTuple):
    """`seconds`: first_call, compile (first call minus median), median, best; `value`: what was returned."""

    seconds: dict[str, float]
    value: Any


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
    results = {}
    for name, runs in seconds.items():
        median = statistics.median(runs)
        timings = {"first_call": first[name], "compile": max(first[name] - median, 0.0)}
        results[name] = Measured(timings | {"median": median, "best": min(runs)}, values[name])
    return results


def result_row(
    measure: str,
    what: str,
    package: Measured,
    accuracy: str,
    *,
    peer: Measured | None = None,
    against: str = "",
    dtype: str = "float64",
    repeats: int,
    **figures: float | None,
) -> dict[str, Any]:
    """A row of the results; `figures` has `gap` or `error`, and whatever else is worth a key."""
    row: dict[str, Any] = {"measure": measure, "what": what, "dtype": dtype, "package": package.seconds}
    if peer is not None:
        ratio = peer.seconds["median"] / package.seconds["median"]
        row |= {"against": against, "peer": peer.seconds, "ratio": ratio}
    numbers = {name: _finite(figure) for name, figure in figures.items()}
    return row | {"repeats": repeats, **numbers, "accuracy": accuracy}


def curve_point(
    curve: str,
    x_name: str,
    x: int,
    package: Measured,
    gap: float | None,
    *,
    repeats: int,
    dtype: str = "float64",
) -> dict[str, Any]:
    """A point of a scaling curve: median seconds at `x`, and the relative gap or error reached there."""
    seconds = {"seconds": package.seconds["median"], "first_call": package.seconds["first_call"]}
    return {
        "curve": curve,
        "x_name": x_name,
        "x": x,
        **seconds,
        "gap": _finite(gap),
        "dtype": dtype,
        "repeats": repeats,
    }


def _finite(figure: float | None) -> float | None:
    """JSON has neither inf nor NaN."""
    return figure if figure is not None and math.isfinite(figure) else None


def usable_cores() -> int:
    """Of this machine, those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
