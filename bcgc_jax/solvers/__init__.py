"""Solvers: closed forms, stochastic subgradients, baselines, and `solve` over them."""

from bcgc_jax.solvers.baselines import runtime_limit, straggler_ratio
from bcgc_jax.solvers.compare import Comparison, compare
from bcgc_jax.solvers.methods import Deadline, Ferdinand, Optimal, Subgradient, Tandon, TandonPartial
from bcgc_jax.solvers.schemes import Scheme
from bcgc_jax.solvers.solve import solve

__all__ = [
    "Comparison",
    "Deadline",
    "Ferdinand",
    "Optimal",
    "Scheme",
    "Subgradient",
    "Tandon",
    "TandonPartial",
    "compare",
    "runtime_limit",
    "solve",
    "straggler_ratio",
]
