"""A plan in a file: what `Solution.load` reads."""

from typing import Any

from bcgc_jax._pytree import replace
from bcgc_jax.solution import Parts, Solution


def save_plan(solution: Solution, num_workers: int, path: str) -> None:
    """Write a solution, without the levels that its problem was padded to."""
    known = replace(solution, rounded_value=solution.rounded_runtime)

    def cut(value: Any) -> Any:
        return None if value is None else value[:num_workers]

    parts = known.parts
    if known.partition is not None and parts is not None:
        parts = Parts(*map(cut, parts))
    partition, rounded, levels = map(cut, (known.partition, known.rounded, known.levels))
    replace(known, partition=partition, rounded=rounded, levels=levels, parts=parts).save(path)
