"""Distributions of one worker's cycle time, and of all N cycle times of a step."""

from bcgc_jax import _removed
from bcgc_jax.distributions.atoms import Deterministic as Deterministic
from bcgc_jax.distributions.atoms import Empirical as Empirical
from bcgc_jax.distributions.atoms import TwoSpeed as TwoSpeed
from bcgc_jax.distributions.base import Atomic as Atomic
from bcgc_jax.distributions.base import Distribution as Distribution
from bcgc_jax.distributions.base import Kinked as Kinked
from bcgc_jax.distributions.base import Smooth as Smooth
from bcgc_jax.distributions.families import Exponential as Exponential
from bcgc_jax.distributions.families import FromHazard as FromHazard
from bcgc_jax.distributions.families import Gamma as Gamma
from bcgc_jax.distributions.families import HazardSpline as HazardSpline
from bcgc_jax.distributions.families import Lognormal as Lognormal
from bcgc_jax.distributions.families import Pareto as Pareto
from bcgc_jax.distributions.families import ShiftedExponential as ShiftedExponential
from bcgc_jax.distributions.families import Uniform as Uniform
from bcgc_jax.distributions.families import Weibull as Weibull
from bcgc_jax.distributions.joint import EmpiricalRows as EmpiricalRows
from bcgc_jax.distributions.joint import Heterogeneous as Heterogeneous
from bcgc_jax.distributions.joint import JointDistribution as JointDistribution
from bcgc_jax.distributions.mixture import Mixture as Mixture

__getattr__ = _removed.refuses_removed("bcgc_jax.distributions")
