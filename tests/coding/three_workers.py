"""A scheme of three workers, and a cluster that has started no process."""

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax import coding
from bcgc_jax.cluster.master import Cluster
from bcgc_jax.distributions import ShiftedExponential

KEY = jax.random.key(0)
LAW = ShiftedExponential(1.0, 1.0)
REAL = {"w": np.zeros(3, np.float32)}
SUBSETS = np.zeros((3, 2, 3), np.float32)
PLAN = coding.coding_plan(KEY, REAL, [0, 3, 0])
SCHEME = coding.TrainingScheme(PLAN, jnp.ones(1), jnp.zeros(1))


def of_cluster(call):
    """`call` of a cluster before its processes are asked anything: none is started."""
    cluster = object.__new__(Cluster)
    cluster._closed = False
    cluster._has_ray = lambda: True  # type: ignore[method-assign]
    return call(cluster)
