"""What workers do, when that is enough, and how long it takes."""

from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.iterations import expected_order_statistics, sorted_cycle_times
from bcgc_jax.plans.plan import Plan, Requirements
from bcgc_jax.plans.runtime import Certificate, RuntimeEstimate, integrate_runtime

__all__ = [
    "Certificate",
    "Expectation",
    "Plan",
    "Requirements",
    "RuntimeEstimate",
    "expected_order_statistics",
    "integrate_runtime",
    "sorted_cycle_times",
]
