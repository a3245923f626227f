"""Time functions repeatedly, by turns, until their results are ready."""

import datetime
import functools
import importlib.metadata
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import bcgc_jax as bcgc


class Measured(NamedTuple):
    """A timing: `seconds` has first_call, compile and a `spread`; `value` is what was
    returned.

    Compile is the first call minus the median.
    """

    seconds: dict[str, float]
    value: Any
    repeats: int = 1


def measured(first: float, later: Sequence[float], value: Any = None) -> Measured:
    """Make a timing of the seconds of a first call and of those after it."""
    middle = spread(later)
    compiled = {"first_call": first, "compile": max(first - middle["median"], 0.0)}
    return Measured(compiled | middle, value, len(later))


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """The median of repeated calls, the shortest and the longest one.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'best': 1.0, 'worst': 3.0}
    """
    return {
        "median": statistics.median(seconds),
        "best": min(seconds),
        "worst": max(seconds),
    }


def compare(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Measured]:
    """Time a first call of each, from empty compilation caches, then `repeats`
    interleaved calls.

    With `time.process_time` as the `clock`, other work on the machine counts little.
    """
    jax.clear_caches()  # what was measured before must not have compiled a part of this
    first: dict[str, float] = {}
    for name, function in functions.items():
        start = clock()
        jax.block_until_ready(function())
        first[name] = clock() - start
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    values: dict[str, Any] = {}
    for i in range(repeats):
        for name, function in functions.items():
            start = clock()
            value = jax.block_until_ready(function())
            seconds[name].append(clock() - start)
            if i == repeats - 1:
                values[name] = value
            del value  # it may be large: the next call must find the memory free
    return {
        name: measured(first[name], runs, values[name])
        for name, runs in seconds.items()
    }


def in_float64(
    measure: Callable[[], Iterable[dict[str, Any]]],
) -> Callable[[], list[dict[str, Any]]]:
    """A measure whose rows are all of float64."""

    @functools.wraps(measure)
    def rows() -> list[dict[str, Any]]:
        with jax.enable_x64(True):
            return list(measure())

    return rows


def result_row(
    measure: str,
    what: str,
    results: Mapping[str, Measured],
    accuracy: str,
    figures: Mapping[str, float | None],
    *,
    against: str = "",
    peer: str = "peer",
    dtype: str = "float64",
) -> dict[str, Any]:
    """Make a row of the results: the "package" of what was measured, and a `peer` if
    one is named.

    `figures` has `gap` or `error`, and whatever else is worth a key.
    """
    package = results["package"]
    beside = results[peer if against else "package"]
    row: dict[str, Any] = {
        "measure": measure,
        "what": what,
        "dtype": dtype,
        "package": package.seconds,
    }
    if against:
        ratio = beside.seconds["median"] / package.seconds["median"]
        row |= {"against": against, "peer": beside.seconds, "ratio": ratio}
    numbers = {name: _finite(figure) for name, figure in figures.items()}
    return row | {"repeats": beside.repeats, **numbers, "accuracy": accuracy}


def curve_point(
    curve: str, x_name: str, x: int, package: Measured, gap: float
) -> dict[str, Any]:
    """Make a point of a scaling curve: median seconds at `x`, and gap or error."""
    seconds = {name: package.seconds[name] for name in ("first_call", "best", "worst")}
    place = {
        "curve": curve,
        "x_name": x_name,
        "x": x,
        "seconds": package.seconds["median"],
    }
    return (
        place
        | seconds
        | {"gap": _finite(gap), "dtype": "float64", "repeats": package.repeats}
    )


def _finite(figure: float | None) -> float | None:
    """JSON has neither inf nor NaN."""
    if figure is not None and math.isfinite(figure):
        return figure
    return None


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str | None:
    """What the processor calls itself, where that is known."""
    listed = Path("/proc/cpuinfo")
    lines = []
    if listed.exists():
        lines = listed.read_text().splitlines()
    names = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    ]
    if names:
        return names[0]
    return platform.processor() or None


def commit() -> str | None:
    """The commit of this tree, "-dirty" if changed; None without a repository."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def environment() -> dict[str, Any]:
    """Device and versions, to be kept beside every figure."""
    device = jax.devices()[0]
    facts = {
        "package": bcgc.__version__,
        "commit": commit(),
        "device": f"{device.platform}: {device.device_kind}",
        "cpu": cpu_model(),
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
    return facts | {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    }
