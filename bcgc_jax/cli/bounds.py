"""How far plans are above the optimum, in the tables of `bcgc solve` and `sweep`."""

import math
from collections.abc import Iterable
from typing import Any

from bcgc_jax.solution import LOOSE


def _above_bound(value: float, bound: float | None) -> str:
    """Say how far at most a runtime is above the optimum, by the `bound` if any."""
    gap = math.inf
    if bound:
        gap = 100 * (value / bound - 1)
    if gap < 10:
        return f"{gap:.2g} %"
    if gap < 1000:
        return f"{gap:.0f} %"
    return "–"


def above_optimum(row: Any, bound: float | None) -> str:
    """Say how far a row's plan is above the optimum at most, if `bound` is for it."""
    if row.kind == "local" and math.isfinite(row.runtime):
        return "best found"
    if row.bound_of == "levels":
        return _above_bound(row.runtime, bound)
    return "–"


def best_bound(rows: Iterable[Any], *, all_levels: bool) -> float:
    """Return the bound of the optimum; 0 where that was not asked for and all bounds
    are loose.

    Certificates for `all_levels` bound the same optimum, so the best of them serves
    all. With setup or chain cycles each is for the levels in use: the best plan's
    serves, and says how far below it plans of these levels could get.
    """
    coded = [row for row in rows if row.bound_of == "levels"]
    if not coded:
        return 0
    nearest = min(coded, key=lambda row: row.runtime)
    if all_levels:
        of_all_levels = [row for row in coded if "levels" not in row.method]
        bound = max((row.lower_bound or 0 for row in of_all_levels), default=0)
    else:
        bound = nearest.lower_bound or 0
    searched = any(row.method == "optimal" for row in coded)
    if searched or bound >= (1 - LOOSE) * nearest.runtime:
        return bound
    return 0


def bound_head(*, all_levels: bool) -> str:
    """The head over `above_optimum`.

    Plans of other levels may be faster than a bound.
    """
    if all_levels:
        return "above\noptimum ≤"
    return "above best\nfound ≤"
