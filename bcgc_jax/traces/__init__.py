"""Measured times: logs and profiles are read, recorded, and fitted."""

from typing import Any

from bcgc_jax._extras import first_used, public_names

_PUBLIC = public_names(__file__)
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import what is used when it is first used: some files need no JAX."""
    return first_used(name, globals())
