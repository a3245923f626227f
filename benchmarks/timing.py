"""Repeated timing of functions, interleaved, with everything they return ready."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def compare(functions: Mapping[str, Callable[[], Any]], repeats: int = 15) -> dict[str, dict[str, float]]:
    """First call (with compilation), then best and median seconds of interleaved calls, for each."""
    results = {}
    for name, function in functions.items():
        start = time.perf_counter()
        jax.block_until_ready(function())
        results[name] = {"first_call": time.perf_counter() - start}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        results[name] |= {"best": min(values), "median": statistics.median(values)}
    return results


def environment() -> dict[str, str]:
    """Device and versions, to be kept beside every figure."""
    device = jax.devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }
