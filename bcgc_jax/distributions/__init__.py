"""Distributions of one worker's cycle time, and of all N times of an iteration."""

from bcgc_jax.distributions.atoms import Deterministic, Empirical, EmpiricalPairs, TwoSpeed
from bcgc_jax.distributions.base import Atomic, Distribution, Kinked, Smooth
from bcgc_jax.distributions.families import (
    Exponential,
    FromHazard,
    Gamma,
    HazardSpline,
    Lognormal,
    Pareto,
    ShiftedExponential,
    Uniform,
    Weibull,
)
from bcgc_jax.distributions.joint import EmpiricalRows, Heterogeneous, JointDistribution

__all__ = [
    "Atomic",
    "Deterministic",
    "Distribution",
    "Empirical",
    "EmpiricalPairs",
    "EmpiricalRows",
    "Exponential",
    "FromHazard",
    "Gamma",
    "HazardSpline",
    "Heterogeneous",
    "JointDistribution",
    "Kinked",
    "Lognormal",
    "Pareto",
    "ShiftedExponential",
    "Smooth",
    "TwoSpeed",
    "Uniform",
    "Weibull",
]
