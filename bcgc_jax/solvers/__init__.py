"""Solvers: closed forms, stochastic subgradients, baselines, and `solve` over them."""

from bcgc_jax.solvers.baselines import straggler_ratio as straggler_ratio
from bcgc_jax.solvers.compare import Comparison as Comparison
from bcgc_jax.solvers.compare import compare as compare
from bcgc_jax.solvers.completion_bound import CompletionBound as CompletionBound
from bcgc_jax.solvers.completion_bound import completion_bound as completion_bound
from bcgc_jax.solvers.limit import Limit as Limit
from bcgc_jax.solvers.limit import runtime_limit as runtime_limit
from bcgc_jax.solvers.methods import Backup as Backup
from bcgc_jax.solvers.methods import Cyclic as Cyclic
from bcgc_jax.solvers.methods import Deadline as Deadline
from bcgc_jax.solvers.methods import Drop as Drop
from bcgc_jax.solvers.methods import Ferdinand as Ferdinand
from bcgc_jax.solvers.methods import Nested as Nested
from bcgc_jax.solvers.methods import Optimal as Optimal
from bcgc_jax.solvers.methods import Sharing as Sharing
from bcgc_jax.solvers.methods import Subgradient as Subgradient
from bcgc_jax.solvers.methods import Tandon as Tandon
from bcgc_jax.solvers.methods import TandonPartial as TandonPartial
from bcgc_jax.solvers.placement import place_workers as place_workers
from bcgc_jax.solvers.schemes import Scheme as Scheme
from bcgc_jax.solvers.solve import solve as solve
