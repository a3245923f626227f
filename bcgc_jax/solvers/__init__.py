"""Methods that plan a problem, and `solve`, which calls them and evaluates plans."""

from bcgc_jax import _removed
from bcgc_jax.solvers.baselines import Backup as Backup
from bcgc_jax.solvers.baselines import Ferdinand as Ferdinand
from bcgc_jax.solvers.baselines import Tandon as Tandon
from bcgc_jax.solvers.baselines import TandonPartial as TandonPartial
from bcgc_jax.solvers.baselines import straggler_ratio as straggler_ratio
from bcgc_jax.solvers.compare import Comparison as Comparison
from bcgc_jax.solvers.compare import compare as compare
from bcgc_jax.solvers.cyclic import Cyclic as Cyclic
from bcgc_jax.solvers.deadline import Deadline as Deadline
from bcgc_jax.solvers.drop import Drop as Drop
from bcgc_jax.solvers.limit import Limit as Limit
from bcgc_jax.solvers.limit import runtime_limit as runtime_limit
from bcgc_jax.solvers.nested import Nested as Nested
from bcgc_jax.solvers.optimum import Optimal as Optimal
from bcgc_jax.solvers.schemes import Scheme as Scheme
from bcgc_jax.solvers.sharing import Sharing as Sharing
from bcgc_jax.solvers.solve import solve as solve
from bcgc_jax.solvers.subgradient import Subgradient as Subgradient

__getattr__ = _removed.refuses_removed("bcgc_jax.solvers")
