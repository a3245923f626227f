"""Solvers: closed forms, stochastic subgradients, baselines, and `solve` over them."""

from bcgc_jax.solvers.baselines import runtime_limit, straggler_ratio
from bcgc_jax.solvers.compare import Comparison, compare
from bcgc_jax.solvers.completion_bound import CompletionBound, completion_bound
from bcgc_jax.solvers.methods import (
    Alternating,
    Backup,
    Cyclic,
    Deadline,
    Ferdinand,
    MultiMessage,
    Nested,
    Optimal,
    Sharing,
    Subgradient,
    Tandon,
    TandonPartial,
)
from bcgc_jax.solvers.schemes import Scheme
from bcgc_jax.solvers.solve import solve

__all__ = [
    "Alternating",
    "Backup",
    "Comparison",
    "CompletionBound",
    "Cyclic",
    "Deadline",
    "Ferdinand",
    "MultiMessage",
    "Nested",
    "Optimal",
    "Scheme",
    "Sharing",
    "Subgradient",
    "Tandon",
    "TandonPartial",
    "compare",
    "completion_bound",
    "runtime_limit",
    "solve",
    "straggler_ratio",
]
