"""Grids of problems, solved in chunks by one program for each method, and their files."""

from bcgc_jax.sweeps.cells import grid
from bcgc_jax.sweeps.files import write_sweep
from bcgc_jax.sweeps.run import Sweep, sweep

__all__ = ["Sweep", "grid", "sweep", "write_sweep"]
