"""List the public names for type checkers.

`__init__.py` reads this list, and imports each name when it is first used.
"""

from bcgc_jax import coding as coding
from bcgc_jax import diagnosis as diagnosis
from bcgc_jax import distributions as distributions
from bcgc_jax import plans as plans
from bcgc_jax import solvers as solvers
from bcgc_jax import sweeps as sweeps
from bcgc_jax import traces as traces
from bcgc_jax.diagnosis.advice import advise as advise
from bcgc_jax.distributions import Empirical as Empirical
from bcgc_jax.distributions import EmpiricalRows as EmpiricalRows
from bcgc_jax.distributions import Exponential as Exponential
from bcgc_jax.distributions import FromHazard as FromHazard
from bcgc_jax.distributions import Gamma as Gamma
from bcgc_jax.distributions import Heterogeneous as Heterogeneous
from bcgc_jax.distributions import Lognormal as Lognormal
from bcgc_jax.distributions import Mixture as Mixture
from bcgc_jax.distributions import Pareto as Pareto
from bcgc_jax.distributions import ShiftedExponential as ShiftedExponential
from bcgc_jax.distributions import TwoSpeed as TwoSpeed
from bcgc_jax.distributions import Uniform as Uniform
from bcgc_jax.distributions import Weibull as Weibull
from bcgc_jax.plans.iterations import sorted_cycle_times as sorted_cycle_times
from bcgc_jax.plans.partitions import levels_from_partition as levels_from_partition
from bcgc_jax.plans.partitions import partition_from_levels as partition_from_levels
from bcgc_jax.plans.plan import Plan as Plan
from bcgc_jax.plans.runtime import block_runtime as block_runtime
from bcgc_jax.plans.runtime import certificate as certificate
from bcgc_jax.plans.runtime import completion_probability as completion_probability
from bcgc_jax.plans.runtime import coordinate_runtime as coordinate_runtime
from bcgc_jax.plans.runtime import expected_runtime as expected_runtime
from bcgc_jax.plans.simulation import simulate_runtime as simulate_runtime
from bcgc_jax.problem import Problem as Problem
from bcgc_jax.problem import Status as Status
from bcgc_jax.solution import Solution as Solution
from bcgc_jax.solvers import Deadline as Deadline
from bcgc_jax.solvers import Ferdinand as Ferdinand
from bcgc_jax.solvers import Nested as Nested
from bcgc_jax.solvers import Optimal as Optimal
from bcgc_jax.solvers import Scheme as Scheme
from bcgc_jax.solvers import Sharing as Sharing
from bcgc_jax.solvers import Subgradient as Subgradient
from bcgc_jax.solvers import Tandon as Tandon
from bcgc_jax.solvers import TandonPartial as TandonPartial
from bcgc_jax.solvers import compare as compare
from bcgc_jax.solvers import solve as solve

__all__: list[str]
__version__: str
