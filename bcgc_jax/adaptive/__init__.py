"""Plans that follow what is measured: which scheme, with how large parts, and when to change it."""

from bcgc_jax.adaptive.planner import Decision, Planner
from bcgc_jax.adaptive.plans import WorkPlan
from bcgc_jax.adaptive.rules import RULES, Rule

__all__ = ["RULES", "Decision", "Planner", "Rule", "WorkPlan"]
