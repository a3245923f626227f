"""List names that the last minor version removed, and their replacements.

An entry is kept for one minor version.
"""

from collections.abc import Callable
from typing import Any, NoReturn

# Full name of an attribute: a sentence that says what to use.
ATTRIBUTES: dict[str, str] = {
    "bcgc_jax.solvers.place_workers": (
        "It has no replacement. Worker w is at position w."
    ),
    "bcgc_jax.distributions.EmpiricalPairs": (
        "Use bcgc_jax.Empirical for the cycle times, and a number for start_up."
    ),
    "bcgc_jax.measured": (
        "Use bcgc_jax.traces (Trace, load_trace, fit_distributions, …) and "
        "bcgc_jax.diagnosis (advise, describe, …)."
    ),
    "bcgc_jax.handout": "Use bcgc_jax.balancing.dispatch.",
    "bcgc_jax.compiled": "Use bcgc_jax.balancing.compiled.",
    "bcgc_jax.traces.fit_start_up": (
        "Subtract the start-up time from the seconds, and pass it to bcgc_jax.Problem "
        "as the number start_up."
    ),
    "bcgc_jax.traces.StartUpFit": (
        "It was the result of fit_start_up, which was also removed."
    ),
    "bcgc_jax.solvers.completion_bound": (
        "The bound has no replacement. bcgc_jax.Deadline(t) finds the plan, and a "
        "second search from another start can confirm it."
    ),
    "bcgc_jax.solvers.CompletionBound": (
        "It was the result of completion_bound, which was also removed."
    ),
    "bcgc_jax.cluster": (
        "Use bcgc_jax.coding.workers.CodedWorkers for coded gradients on Ray, and "
        "bcgc_jax.balancing.dispatch.serve(…, adapt=True) for work sharing in any "
        "loop. Ray restarts lost processes. Write checkpoints yourself, for example "
        "with orbax."
    ),
}
# Words of the command line, such as "sweep" or "solve --method": a sentence that says
# what to use.
COMMANDS: dict[str, str] = {
    "plot": (
        "Use --figure FILE with the command whose result you want to plot: solve, "
        "sweep, fit or advise."
    ),
}


def refuse_attribute(module: str, name: str) -> NoReturn:
    """Raise an AttributeError for a name that `module` does not have."""
    message = f"module {module!r} has no attribute {name!r}"
    replacement = ATTRIBUTES.get(f"{module}.{name}")
    if replacement is not None:
        message = f"{module}.{name} was removed. {replacement}"
    raise AttributeError(message)


def refuses_removed(module: str) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module that imports everything at once."""

    def refuse(name: str) -> Any:
        refuse_attribute(module, name)

    return refuse
