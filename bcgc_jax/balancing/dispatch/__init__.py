"""Work sharing in one's own training loop, beside any all-reduce: `serve` in one,
`join` in all.

It needs no JAX: to `serve` takes NumPy, to `join` nothing.
"""

from typing import Any

from bcgc_jax.balancing.dispatch.client import Chunk as Chunk
from bcgc_jax.balancing.dispatch.client import GroupShare as GroupShare
from bcgc_jax.balancing.dispatch.client import Share as Share
from bcgc_jax.balancing.dispatch.client import StepFailed as StepFailed
from bcgc_jax.balancing.dispatch.client import follow as follow
from bcgc_jax.balancing.dispatch.client import join as join
from bcgc_jax.balancing.dispatch.transport import Memory as Memory
from bcgc_jax.balancing.dispatch.transport import Tcp as Tcp

__all__ = [
    *(
        "Chunk",
        "Coordinator",
        "GroupShare",
        "Memory",
        "Placement",
        "Share",
        "StepFailed",
        "Tcp",
    ),
    *("follow", "join", "serve"),
]


def __getattr__(name: str) -> Any:
    """What hands out is imported when it is first used."""
    if name not in ("serve", "Coordinator", "Placement"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bcgc_jax.balancing.dispatch import coordinator

    return getattr(coordinator, name)
