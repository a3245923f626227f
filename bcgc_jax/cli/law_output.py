"""Laws, and what is asked beside them, as JSON says them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from bcgc_jax.cli.arguments import law_name
from bcgc_jax.cli.deliveries import Delivery
from bcgc_jax.cli.output import finite
from bcgc_jax.distributions import Empirical, HazardSpline, JointLaw, Law, Pairs, Rows, Unlike


def describe_law(law: Law | JointLaw) -> Any:
    """The law as plain JSON values, null where a number is infinite; for unlike workers a list."""
    if isinstance(law, Unlike):
        return [describe_law(one) for one in law.laws]
    if isinstance(law, Rows):
        steps, workers = np.asarray(law.times).shape
        return {"law": "rows", "steps": steps, "workers": workers, "mean": finite(law.mean())}
    if isinstance(law, HazardSpline):
        knots, index = int(jnp.size(law.times)), finite(np.asarray(law.tail_index))
        return {"law": "smooth", "knots": knots, "mean": finite(law.mean()), "tail_index": index}
    assert isinstance(law, Law)
    if isinstance(law, Empirical | Pairs):
        size = int(np.size(law.times if isinstance(law, Empirical) else law.cycle_times))
        return {"law": "empirical", "measured_times": size, "mean": finite(law.mean())}
    fields = dataclasses.fields(law)  # type: ignore[arg-type]
    return {"law": law_name(type(law)), **{f.name: finite(getattr(law, f.name)) for f in fields}}


def describe_delivery(asked: Delivery) -> dict[str, Any]:
    """Start-up, link and chain of one problem; what was not asked for is not there."""
    start = {"start_up": describe_law(asked.start_up)} if isinstance(asked.start_up, Law) else {}
    return asked.keywords() | start
