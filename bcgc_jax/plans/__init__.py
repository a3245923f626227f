"""Describe what workers compute, when a step is complete, and how long it takes."""

from typing import Any

from bcgc_jax._extras import first_used, public_names

_PUBLIC = public_names(__file__)
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, because some files do not need JAX."""
    return first_used(name, globals())
