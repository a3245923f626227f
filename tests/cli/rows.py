"""Rows of an answer, made by hand: nothing is solved."""

from typing import Any, cast

from bcgc_jax.cli.solve_rows import Solved


def row(method, runtime, partition=None, **options) -> Solved:
    defaults: dict[str, Any] = {
        "status": "converged",
        "seconds": 1.0,
        "partition": partition,
        "partition_runtime": runtime if partition else None,
        "runtime_error": 0.0,
        "saved": 1 - runtime / 16,
        "sent": 1.0,
        "round_trips": 0,
        "exact_gradient": True,
        "stored_subsets": 1,
        "lost": 0.0,
        "deadline": 16.0 if "completion_probability" in options else None,
        "bound_of": None if method == "limit" or "schedule" in options else "levels",
    }
    return Solved(
        method, cast(Any, None), expected_runtime=runtime, **(defaults | options)
    )
