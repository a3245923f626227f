"""Measured times: logs and profiles are read, recorded, and fitted."""

from bcgc_jax.traces.choice import distribution_of as distribution_of
from bcgc_jax.traces.choice import smooth_empirical as smooth_empirical
from bcgc_jax.traces.fits import Fit as Fit
from bcgc_jax.traces.fits import fit_distributions as fit_distributions
from bcgc_jax.traces.resampling import bootstrap_interval as bootstrap_interval
from bcgc_jax.traces.trace import Trace as Trace
from bcgc_jax.traces.trace import load_trace as load_trace
