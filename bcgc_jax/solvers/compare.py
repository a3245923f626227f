"""Every method for one problem, side by side: the command's table in Python."""

from collections.abc import Sequence

import numpy as np
from jax import Array

from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution
from bcgc_jax.solvers.baselines import alpha_of
from bcgc_jax.solvers.methods import BASELINES, LIMIT, PROPOSED, Method, method_of
from bcgc_jax.solvers.schemes import Scheme
from bcgc_jax.solvers.solve import solve

EVERY = (*PROPOSED, *BASELINES, LIMIT)


class Comparison(dict[str, Solution]):
    """Solutions by the name of their method, the fastest first; its `repr` is a table."""

    def __repr__(self) -> str:
        optimum = self.get("optimal")
        lines = [f"{'method':<22} {'expected runtime':>16} {'above the bound':>16}  status"]
        for name, solution in self.items():
            value = float(solution.expected_runtime)
            bound = np.nan if optimum is None or name == LIMIT else float(optimum.lower_bound)
            above = f"{100 * (value / bound - 1):.3g} %" if np.isfinite(value / bound) else ""
            status = Status(int(solution.status)).name.lower()
            label = f"{name} α {alpha_of(solution):.3g}" if name == "tandon_partial" else name
            lines.append(f"{label:<22} {value:>16.5g} {above:>16}  {status}")
        return "\n".join(lines)


def compare(
    problem: Problem,
    methods: Sequence[str | Method | Scheme] = EVERY,
    *,
    key: Array | None = None,
) -> Comparison:
    r"""Solutions of one problem by several methods, those that there are for it, the fastest first.

    Without a key, methods that draw are left out unless they are asked for by `methods`. Raises ValueError as
    `solve` does, but for methods of the default list that this problem has no use for.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=4, num_coordinates=2_000)
    >>> found = compare(problem, ["uncoded", "time", "optimal"])
    >>> list(found), bool(found["time"].expected_runtime < found["uncoded"].expected_runtime)
    (['optimal', 'time', 'uncoded'], True)
    """
    found: dict[str, Solution] = {}
    for asked in (methods,) if isinstance(methods, str) else methods:
        if methods is EVERY and asked == "subgradient" and key is None:
            continue
        try:
            solution = solve(problem, method_of(asked), key=key)
        except ValueError:
            if methods is EVERY and asked != "optimal":
                continue
            raise
        if solution.method in found:
            raise ValueError(f'two methods are named "{solution.method}": compare their solutions one by one')
        found[solution.method] = solution
    return Comparison(sorted(found.items(), key=lambda item: _rank(item[1])))


def _rank(solution: Solution) -> float:
    value = float(solution.expected_runtime)
    return np.inf if np.isnan(value) else value
