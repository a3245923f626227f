"""What workers do, when that is enough, and how long it takes."""

from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.iterations import expected_order_statistics, sorted_cycle_times
from bcgc_jax.plans.plan import Needs, Plan
from bcgc_jax.plans.runtime import Certificate, RuntimeEstimate, integrate_runtime

__all__ = [
    "Certificate",
    "Expectation",
    "Needs",
    "Plan",
    "RuntimeEstimate",
    "expected_order_statistics",
    "integrate_runtime",
    "sorted_cycle_times",
]
