"""What to install where an optional dependency is missing; the package is on no index."""


def to_install(extra: str) -> str:
    """The command that brings what an `extra` of pyproject.toml needs.

    >>> to_install("plot")
    "in a clone of the project, pip install '.[plot]'"
    """
    return f"in a clone of the project, pip install '.[{extra}]'"
