"""Laws of one worker's cycle time, and of all N times of an iteration."""

from bcgc_jax.distributions.atoms import Deterministic, Empirical, TwoSpeed
from bcgc_jax.distributions.base import Atomic, Kinked, Law, Smooth
from bcgc_jax.distributions.families import (
    Exponential,
    FromHazard,
    Gamma,
    Lognormal,
    Pareto,
    ShiftedExponential,
    Uniform,
    Weibull,
)
from bcgc_jax.distributions.joint import JointLaw, Rows, Unlike
from bcgc_jax.distributions.pairs import Pairs
from bcgc_jax.distributions.spline import HazardSpline

__all__ = [
    "Atomic",
    "Deterministic",
    "Empirical",
    "Exponential",
    "FromHazard",
    "Gamma",
    "HazardSpline",
    "JointLaw",
    "Kinked",
    "Law",
    "Lognormal",
    "Pairs",
    "Pareto",
    "Rows",
    "ShiftedExponential",
    "Smooth",
    "TwoSpeed",
    "Uniform",
    "Unlike",
    "Weibull",
]
