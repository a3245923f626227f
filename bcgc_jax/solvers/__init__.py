"""Solvers: closed forms, stochastic subgradients, baselines, and `solve` over them."""

from bcgc_jax.solvers.baselines import runtime_limit, straggler_ratio
from bcgc_jax.solvers.schemes import register_scheme
from bcgc_jax.solvers.solve import solve

__all__ = ["register_scheme", "runtime_limit", "solve", "straggler_ratio"]
