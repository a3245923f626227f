"""Optimization-based block coordinate gradient coding in JAX.

Here: distributions of the workers' times, problems and their solutions, methods,
runtimes. By subject: `coding`, gradient codes and training with them; `measured`, from
a file of measured times to a distribution; `plans`, partitions, schedules and types of
answers; `solvers`, bounds and limits; `sweeps`, many problems at once; `distributions`,
all of them.
"""

from typing import Any

from bcgc_jax._extras import first_used, public_names, version_of_package

_PUBLIC = public_names(__file__)
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a name at first use: a help text needs no JAX."""
    if name == "__version__":
        version = version_of_package()
        globals()[name] = version
        return version
    return first_used(name, globals())


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
