"""Optimization-based block coordinate gradient coding in JAX."""

from importlib.metadata import PackageNotFoundError, version

from bcgc_jax.coding.codes import (
    GradientCode,
    allocate,
    conditioning,
    decode,
    decoding_weights,
    encode,
    gradient_code,
)
from bcgc_jax.coding.gradients import (
    CodingPlan,
    backward_order,
    coded_value_and_grad,
    coding_plan,
    shard_subsets,
    split_batch,
    unit_sizes,
)
from bcgc_jax.coding.training import TrainingScheme, train, training_scheme
from bcgc_jax.iterations import expected_order_statistics, sorted_cycle_times
from bcgc_jax.laws import (
    Empirical,
    FromHazard,
    Gamma,
    HazardSpline,
    Law,
    Lognormal,
    Pareto,
    Rows,
    ShiftedExponential,
    TwoSpeed,
    Uniform,
    Unlike,
    Weibull,
)
from bcgc_jax.measured.description import Description, describe
from bcgc_jax.measured.fits import Fit, fit_laws
from bcgc_jax.measured.smooth import smooth_empirical
from bcgc_jax.measured.traces import Trace, load_trace
from bcgc_jax.partitions import (
    cumulative_load,
    levels_from_partition,
    partition_from_levels,
    project_partition,
    round_partition,
)
from bcgc_jax.problem import Problem, Status
from bcgc_jax.runtime import (
    block_runtime,
    certificate,
    completion_probability,
    coordinate_runtime,
    expected_runtime,
    integrate_runtime,
    simulate_runtime,
)
from bcgc_jax.solution import Solution
from bcgc_jax.solvers import (
    Comparison,
    Deadline,
    Ferdinand,
    Optimal,
    Scheme,
    Subgradient,
    Tandon,
    TandonPartial,
    compare,
    runtime_limit,
    solve,
    straggler_ratio,
)
from bcgc_jax.sweep_files import write_sweep
from bcgc_jax.sweeps import Sweep, grid, sweep

try:
    __version__ = version("bcgc-jax")
except PackageNotFoundError:  # a source tree on the path
    __version__ = "unknown"

__all__ = [
    "CodingPlan",
    "Comparison",
    "Deadline",
    "Description",
    "Empirical",
    "Ferdinand",
    "Fit",
    "FromHazard",
    "Gamma",
    "GradientCode",
    "HazardSpline",
    "Law",
    "Lognormal",
    "Optimal",
    "Pareto",
    "Problem",
    "Rows",
    "Scheme",
    "ShiftedExponential",
    "Solution",
    "Status",
    "Subgradient",
    "Sweep",
    "Tandon",
    "TandonPartial",
    "Trace",
    "TrainingScheme",
    "TwoSpeed",
    "Uniform",
    "Unlike",
    "Weibull",
    "allocate",
    "backward_order",
    "block_runtime",
    "certificate",
    "coded_value_and_grad",
    "coding_plan",
    "compare",
    "completion_probability",
    "conditioning",
    "coordinate_runtime",
    "cumulative_load",
    "decode",
    "decoding_weights",
    "describe",
    "encode",
    "expected_order_statistics",
    "expected_runtime",
    "fit_laws",
    "gradient_code",
    "grid",
    "integrate_runtime",
    "levels_from_partition",
    "load_trace",
    "partition_from_levels",
    "project_partition",
    "round_partition",
    "runtime_limit",
    "shard_subsets",
    "simulate_runtime",
    "smooth_empirical",
    "solve",
    "sorted_cycle_times",
    "split_batch",
    "straggler_ratio",
    "sweep",
    "train",
    "training_scheme",
    "unit_sizes",
    "write_sweep",
]
