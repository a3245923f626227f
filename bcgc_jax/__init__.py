"""Optimization-based block coordinate gradient coding in JAX.

This module contains the distributions of the workers' times, problems, solutions,
methods and runtimes. Its parts are:

- `coding`: gradient codes, and training with them.
- `traces`: read measured times from a file, and fit distributions to them.
- `diagnosis`: find out where the steps of a timing log lose time.
- `balancing`: dynamic load balancing in the steps of a training loop.
- `plans`: partitions, runtimes and types of results.
- `solvers`: methods and lower bounds.
- `sweeps`: solve many problems together.
- `distributions`: all distributions.
"""

from typing import Any

from bcgc_jax._extras import first_used, public_names, version_of_package

_PUBLIC = public_names(__file__)
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that a help text does not need JAX."""
    if name == "__version__":
        version = version_of_package()
        globals()[name] = version
        return version
    return first_used(name, globals())


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
