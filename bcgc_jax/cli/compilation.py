"""What the command line does about compiling: JAX keeps programs, and one serves
several N.

For that problems are padded; plans that are written are not.
"""

import contextlib
import math
import os
import warnings
from pathlib import Path

import jax
import numpy as np

from bcgc_jax._pytree import replace
from bcgc_jax.exact.crossing import MANY
from bcgc_jax.plans.plan import partition_plan
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution
from bcgc_jax.solvers.optimum import FEW_UNITS

# Sizes are multiples of it.
_PADDED = 32


def keep_programs() -> None:
    """Let JAX keep compiled programs in the user's cache, unless a folder is chosen."""
    warnings.filterwarnings(
        "ignore", "Error (reading|writing) persistent compilation cache"
    )
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    with contextlib.suppress(OSError, RuntimeError):  # also where there is no home
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "bcgc_jax" / "programs"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # The README's `bcgc solve` leaves 1 MB; JAX looks at all entries whenever it
        # adds one.
        jax.config.update("jax_compilation_cache_max_size", 2**26)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def padded(problem: Problem) -> Problem:
    """Give the problem a `max_workers` up to which N is traced: one program serves 32 N
    as fast.

    Not for atoms and rows, which have a trace in their shape, nor for many workers,
    whose steps know N. And not where whole units or many starts are searched in N²
    trials, nor where setup is paid for the levels of more than 32 workers, or with
    kinks: padding would be felt.
    """
    law = problem.cycle_time
    searched = not problem.plain or np.max(problem.num_coordinates) <= FEW_UNITS
    if searched or law.width() is not None or law.pooled().atomic:
        return problem
    size = _PADDED * math.ceil(problem.max_workers / _PADDED)
    most_workers = _PADDED
    if problem.bare:
        most_workers = MANY
    kinked = problem.has_setup and not law.pooled().smooth
    if kinked or size > most_workers:
        return problem
    return replace(problem, max_workers=size)


def save_plan(solution: Solution, problem: Problem | None, path: str) -> None:
    """Write a solution for `Solution.load`, without the levels that padding has added.

    `problem` is what was asked, for a file that says so.
    """
    assert solution.problem is not None
    size = int(np.asarray(solution.problem.num_workers))
    plan = solution.plan
    if solution.partition is not None:
        plan = partition_plan(solution.partition[:size], size)
    rounded, levels = (
        None if a is None else a[:size] for a in (solution.rounded, solution.levels)
    )
    short = replace(
        solution, plan=plan, rounded=rounded, levels=levels, problem=problem
    )
    replace(short, rounded_value=solution.rounded_runtime).save(path)
