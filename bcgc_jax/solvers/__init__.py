"""Solvers: closed forms, stochastic subgradients, baselines, and `solve` over them."""

from bcgc_jax.solvers.baselines import runtime_limit, straggler_ratio
from bcgc_jax.solvers.solve import solve

__all__ = ["runtime_limit", "solve", "straggler_ratio"]
