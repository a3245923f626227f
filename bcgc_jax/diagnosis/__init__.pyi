"""From a trace to causes, replayed remedies, and advice; without JAX."""

from bcgc_jax.diagnosis.advice import Advice as Advice
from bcgc_jax.diagnosis.advice import advise as advise
from bcgc_jax.diagnosis.description import Description as Description
from bcgc_jax.diagnosis.description import describe as describe
from bcgc_jax.diagnosis.slowness import Slowness as Slowness
