"""What is installed, and what to install for an optional dependency; the package is on no index."""


def to_install(extra: str) -> str:
    """The command that brings what an `extra` of pyproject.toml needs.

    >>> to_install("plot")
    "in a clone of the project, pip install '.[plot]'"
    """
    return f"in a clone of the project, pip install '.[{extra}]'"


def version_of_package() -> str:
    from importlib import metadata

    try:
        return metadata.version("bcgc-jax")
    except metadata.PackageNotFoundError:  # a source tree on the path
        return "unknown"
