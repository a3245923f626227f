"""A scheme of three workers."""

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax import coding
from bcgc_jax.distributions import ShiftedExponential

KEY = jax.random.key(0)
LAW = ShiftedExponential(1.0, 1.0)
REAL = {"w": np.zeros(3, np.float32)}
SUBSETS = np.zeros((3, 2, 3), np.float32)
PLAN = coding.coding_plan(KEY, REAL, [0, 3, 0])
SCHEME = coding.TrainingScheme(PLAN, jnp.ones(1), jnp.zeros(1))
