"""Describe what workers compute, when a step is complete, and how long it takes."""

from bcgc_jax.exact.quadrature import Expectation as Expectation
from bcgc_jax.plans.iterations import (
    expected_order_statistics as expected_order_statistics,
)
from bcgc_jax.plans.iterations import sorted_cycle_times as sorted_cycle_times
from bcgc_jax.plans.plan import Plan as Plan
from bcgc_jax.plans.plan import Requirements as Requirements
from bcgc_jax.plans.runtime import Certificate as Certificate
from bcgc_jax.plans.runtime import integrate_runtime as integrate_runtime
from bcgc_jax.plans.simulation import RuntimeEstimate as RuntimeEstimate
