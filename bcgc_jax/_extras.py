"""Import modules at first use, and explain how to install extras."""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bcgc_jax._removed import refuse_attribute


def public_names(package: str) -> dict[str, str]:
    """Map public names to their modules, as listed in the stub of `package`."""
    lines = ast.parse(Path(package).with_suffix(".pyi").read_text("utf-8")).body
    imports = [line for line in lines if isinstance(line, ast.ImportFrom)]
    return {name.name: str(line.module) for line in imports for name in line.names}


def first_used(name: str, package: dict[str, Any]) -> Any:
    """Import a public name, a file or a folder of a package when it is first used.

    `package` contains the globals of its `__init__.py`.
    """
    package_name = package["__name__"]
    public = package["_PUBLIC"]
    if public.get(name, package_name) != package_name:
        imported: Any = getattr(import_module(public[name]), name)
    elif not name.startswith("_") and find_spec(f"{package_name}.{name}"):
        imported = import_module(f"{package_name}.{name}")
    else:
        refuse_attribute(package_name, name)
    package[name] = imported
    return imported


def to_install(extra: str) -> str:
    """Return the command that installs an `extra` of pyproject.toml.

    >>> to_install("plot")
    "in a clone of the project, pip install '.[plot]'"
    """
    return f"in a clone of the project, pip install '.[{extra}]'"


def version_of_package() -> str:
    from importlib import metadata

    try:
        return metadata.version("bcgc-jax")
    except (
        metadata.PackageNotFoundError
    ):  # the package is not installed, only on the path
        return "unknown"
