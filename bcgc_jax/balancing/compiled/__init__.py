"""Work sharing inside a compiled program: each worker asks for its next chunk."""

from bcgc_jax.balancing.compiled.shared_work import SharedWork as SharedWork

__all__ = ["SharedWork"]
