"""The cells of `bcgc sweep`: parameters of laws that are axes, and the problem that a cell's numbers are."""

from typing import Any

import click
import numpy as np

from bcgc_jax.cli.arguments import missing_parameters
from bcgc_jax.cli.deliveries import START_UP
from bcgc_jax.cli.names import LAWS
from bcgc_jax.distributions import JointLaw, Law
from bcgc_jax.problem import Problem


def all_parameters(
    typed: tuple[str, dict[str, float]], axes: dict[str, np.ndarray], option: str, prefix: str = ""
) -> dict[str, np.ndarray]:
    """All parameters of a law, those of its `option` as axes of one number; named with the `prefix`."""
    law, given = typed
    known = [prefix + name for name in LAWS[law]]
    fixed = {prefix + name: np.array([value]) for name, value in given.items()}
    for name in axes:
        if name not in known:
            raise click.UsageError(f"--axis {name}: {law} has the parameters {', '.join(known)}")
        if name in fixed:
            raise click.UsageError(f"{name} is given twice: in {option} and as an --axis")
    missing = missing_parameters(law, {name.removeprefix(prefix) for name in (*fixed, *axes)})
    if missing:
        raise click.UsageError(f"{law} needs {', '.join(missing)}: in {option} or as an --axis")
    return {**fixed, **axes}


def problem_of_cell(
    law: Any,
    parameters: tuple[str, ...],
    start_up: type[Law] | None,
    overlap: bool,
    max_workers: int,
    **numbers: Any,
) -> Problem:
    """Of laws, or of their classes and parameters by name."""
    if not isinstance(law, Law | JointLaw):
        law = law(**{name: numbers.pop(name) for name in parameters})
    if start_up is not None:
        given = [name for name in numbers if name.startswith(START_UP)]
        numbers["start_up"] = start_up(**{name.removeprefix(START_UP): numbers.pop(name) for name in given})
    return Problem(law, max_workers=max_workers, overlap=overlap, **numbers)
