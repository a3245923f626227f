"""From a file of measured times to a distribution: traces, what they look like, fits, resampling."""

from bcgc_jax.measured.choice import law_of, smooth_empirical
from bcgc_jax.measured.description import Description, describe
from bcgc_jax.measured.fits import Fit, fit_laws
from bcgc_jax.measured.resampling import bootstrap_interval
from bcgc_jax.measured.start_up import StartUpFit, fit_start_up
from bcgc_jax.measured.traces import Trace, load_trace

__all__ = [
    "Description",
    "Fit",
    "StartUpFit",
    "Trace",
    "bootstrap_interval",
    "describe",
    "fit_laws",
    "fit_start_up",
    "law_of",
    "load_trace",
    "smooth_empirical",
]
