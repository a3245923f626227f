"""Laws of one worker's cycle time, and of all N times of an iteration."""

from bcgc_jax.laws.atoms import Empirical, TwoSpeed
from bcgc_jax.laws.base import Law
from bcgc_jax.laws.families import FromHazard, Gamma, Lognormal, Pareto, ShiftedExponential, Uniform, Weibull
from bcgc_jax.laws.joint import Rows, Unlike
from bcgc_jax.laws.spline import HazardSpline

__all__ = [
    "Empirical",
    "FromHazard",
    "Gamma",
    "HazardSpline",
    "Law",
    "Lognormal",
    "Pareto",
    "Rows",
    "ShiftedExponential",
    "TwoSpeed",
    "Uniform",
    "Unlike",
    "Weibull",
]
