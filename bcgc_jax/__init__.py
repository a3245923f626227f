"""Optimization-based block coordinate gradient coding in JAX."""

from bcgc_jax.codes import (
    GradientCode,
    allocate,
    conditioning,
    decode,
    decoding_weights,
    encode,
    gradient_code,
)
from bcgc_jax.distributions import (
    Empirical,
    FromHazard,
    Gamma,
    Law,
    Lognormal,
    Pareto,
    ShiftedExponential,
    TwoSpeed,
    Uniform,
    Weibull,
)
from bcgc_jax.order_statistics import expected_order_statistics, sorted_cycle_times
from bcgc_jax.partitions import (
    cumulative_load,
    levels_from_partition,
    partition_from_levels,
    project_partition,
    round_partition,
)
from bcgc_jax.problem import Problem, Solution, Status
from bcgc_jax.runtime import (
    block_runtime,
    certificate,
    completion_probability,
    coordinate_runtime,
    expected_runtime,
    integrate_runtime,
    simulate_runtime,
)
from bcgc_jax.solvers import runtime_limit, solve, straggler_ratio

__all__ = [
    "Empirical",
    "FromHazard",
    "Gamma",
    "GradientCode",
    "Law",
    "Lognormal",
    "Pareto",
    "Problem",
    "ShiftedExponential",
    "Solution",
    "Status",
    "TwoSpeed",
    "Uniform",
    "Weibull",
    "allocate",
    "block_runtime",
    "certificate",
    "completion_probability",
    "conditioning",
    "coordinate_runtime",
    "cumulative_load",
    "decode",
    "decoding_weights",
    "encode",
    "expected_order_statistics",
    "expected_runtime",
    "gradient_code",
    "integrate_runtime",
    "levels_from_partition",
    "partition_from_levels",
    "project_partition",
    "round_partition",
    "runtime_limit",
    "simulate_runtime",
    "solve",
    "sorted_cycle_times",
    "straggler_ratio",
]
