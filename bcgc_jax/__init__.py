"""Optimization-based block coordinate gradient coding in JAX.

Here: distributions of the workers' times, problems and their solutions, methods, runtimes. By subject:
`coding`, gradient codes and training with them; `measured`, from a file of measured times to a distribution;
`plans`, partitions, schedules and types of answers; `solvers`, bounds and limits; `sweeps`, many problems at
once; `distributions`, all of them; `bcgc_jax.cluster`, worker processes.
"""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# The public names and where they are, as `__init__.pyi` says.
_LINES = ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
_IMPORTS = [line for line in _LINES if isinstance(line, ast.ImportFrom)]
_PUBLIC = {name.name: str(line.module) for line in _IMPORTS for name in line.names}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import what is used when it is first used: what prints a help text needs no JAX."""
    if name == "__version__":
        found: Any = import_module("bcgc_jax._extras").version_of_package()
    elif _PUBLIC.get(name, __name__) != __name__:
        found = getattr(import_module(_PUBLIC[name]), name)
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):  # a file or folder of the package
        found = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
