"""Grids of problems, solved in chunks by one program for each method, and files."""

from bcgc_jax.sweeps.cells import grid as grid
from bcgc_jax.sweeps.files import write_sweep as write_sweep
from bcgc_jax.sweeps.run import Sweep as Sweep
from bcgc_jax.sweeps.run import sweep as sweep
