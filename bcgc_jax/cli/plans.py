"""A plan in a file: what `Solution.load` reads."""

from typing import Any

from bcgc_jax._pytree import replace
from bcgc_jax.plans.plan import partition_plan
from bcgc_jax.solution import Solution


def save_plan(solution: Solution, num_workers: int, path: str) -> None:
    """Write a solution, without the levels that its problem was padded to."""
    known = replace(solution, rounded_value=solution.rounded_runtime)

    def cut(value: Any) -> Any:
        return None if value is None else value[:num_workers]

    plan = known.plan
    if known.partition is not None:
        plan = partition_plan(cut(known.partition), num_workers)
    replace(known, plan=plan, rounded=cut(known.rounded), levels=cut(known.levels)).save(path)
