"""From a file of measured times to a distribution: traces, their slowness, fits,
resampling.
"""

from bcgc_jax.measured.advice import Advice as Advice
from bcgc_jax.measured.advice import advise as advise
from bcgc_jax.measured.choice import distribution_of as distribution_of
from bcgc_jax.measured.choice import smooth_empirical as smooth_empirical
from bcgc_jax.measured.description import Description as Description
from bcgc_jax.measured.description import describe as describe
from bcgc_jax.measured.fits import Fit as Fit
from bcgc_jax.measured.fits import fit_distributions as fit_distributions
from bcgc_jax.measured.resampling import bootstrap_interval as bootstrap_interval
from bcgc_jax.measured.slowness import Slowness as Slowness
from bcgc_jax.measured.traces import Trace as Trace
from bcgc_jax.measured.traces import load_trace as load_trace
