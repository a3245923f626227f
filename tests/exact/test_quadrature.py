"""Rules of integration whose nodes move with what they integrate."""

import jax
import jax.numpy as jnp
import numpy as np

from bcgc_jax.exact.quadrature import Quadrature, follow


def test_rules_in_panels_follow_the_ends_of_their_panels(x64):
    """∫ 1 dt from 1 to 3 and t from 3 to 4, by midpoints: slopes in both ends are those of the integrals."""
    times = jnp.array([1.5, 2.5, 3.25, 3.75])
    weights = jnp.broadcast_to(jnp.array([1.0, 1.0, 0.5, 0.5]), (3, 4))

    def both(ends):
        moved = follow(Quadrature(jnp.array(1.0), times, weights, (2, 2, 2)), ends)
        own = moved.weights[0]
        return jnp.stack([moved.start, jnp.sum(own[:2]), jnp.sum((own * moved.times)[2:])])

    ends = jnp.array([1.0, 3.0])
    np.testing.assert_allclose(jax.jit(both)(ends), [1, 2, 3.5])
    # The last panel moves as a whole, by its end: ∫ t dt from c to c + 1 has the slope 1.
    np.testing.assert_allclose(jax.jit(jax.jacobian(both))(ends), [[1, 0], [-1, 1], [0, 1]])
