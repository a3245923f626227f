"""Laws of one worker's cycle time, and of all N times of an iteration."""

from bcgc_jax.laws.atoms import Deterministic, Empirical, TwoSpeed
from bcgc_jax.laws.base import Atomic, Kinked, Law, Smooth
from bcgc_jax.laws.families import (
    Exponential,
    FromHazard,
    Gamma,
    Lognormal,
    Pareto,
    ShiftedExponential,
    Uniform,
    Weibull,
)
from bcgc_jax.laws.joint import JointLaw, Rows, Unlike
from bcgc_jax.laws.pairs import Pairs
from bcgc_jax.laws.spline import HazardSpline

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
