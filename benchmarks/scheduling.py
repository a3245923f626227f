"""Measure exact runtimes of cyclic schedules, next to matrix powers."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from bcgc_jax.plans.completion import FirstHolder
from bcgc_jax.plans.evaluate import expected_completion
from bcgc_jax.plans.worker import Load, Worker
from benchmarks import peers
from benchmarks.planning import LAW
from benchmarks.timing import compare, in_float64, result_row

# Workers and stored subsets.
COVERS = (10, 10), (20, 20), (50, 50), (1000, 50)


@in_float64
def schedules() -> Iterator[dict[str, Any]]:
    """cyclic at N = 10, 20, 50 and 1000, against NumPy's matrix powers."""
    for workers, depth in COVERS:
        worker = Worker(LAW)
        rule = FirstHolder(workers, workers)
        work = jnp.arange(1.0, depth + 1)
        cover = jax.jit(functools.partial(expected_completion, rule=rule, num_nodes=96))
        package = functools.partial(cover, worker, Load(work))
        peer = functools.partial(peers.cyclic_runtime, workers, depth)
        results = compare(
            {"package": package, "peer": peer}, 3 if workers == 1000 else 15
        )
        value, bound = (float(v) for v in results["package"].value)
        error = bound / value
        away = abs(results["peer"].value / value - 1)
        what = f"exact runtime, cyclic:{depth}, N={workers}"
        against = "tr(A^N) in NumPy at 96 nodes"
        accuracy = f"error bound {error:.1e}; the peer is {away:.1e} away"
        errors = {"error": error, "peer_error": away}
        yield result_row("schedules", what, results, accuracy, errors, against=against)
