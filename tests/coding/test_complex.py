"""Complex parameters: refused by their name, not stripped of their imaginary part."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bcgc_jax import Problem, coding
from bcgc_jax.coding.stages import stages
from bcgc_jax.plans.plan import cyclic_plan
from tests.coding.three_workers import KEY, LAW, PLAN, SCHEME, SUBSETS

PROBLEM = Problem(LAW, 3, 3)
SCHEDULE = cyclic_plan(3.0, 2)
COMPLEX = {"w": np.full(3, 1j, np.complex64)}
MASK = np.ones((1, 3))
GIVEN = COMPLEX, SUBSETS[0], optax.sgd(0.1), 1


def loss(params, batch):
    return jnp.sum(jnp.abs(batch @ params["w"]) ** 2)


ENTRANCES = {
    "encode": lambda: coding.encode(
        coding.gradient_code(KEY, 3, 1), np.full((3, 2), 1j)
    ),
    "decode": lambda: coding.decode(np.ones(2), [np.full(2, 1j), np.ones(2)]),
    "unit_sizes": lambda: coding.unit_sizes(COMPLEX),
    "coding_plan": lambda: coding.coding_plan(KEY, COMPLEX, [0, 3, 0]),
    "schedule_plan": lambda: coding.schedule_plan(SCHEDULE, COMPLEX, 3),
    "training_scheme": lambda: coding.training_scheme(KEY, PROBLEM, SCHEDULE, COMPLEX),
    "backward_order": lambda: coding.backward_order(loss, COMPLEX, SUBSETS[0]),
    "stages": lambda: stages(loss, COMPLEX, SUBSETS[0], [[0]]),
    "coded_value_and_grad": lambda: coding.coded_value_and_grad(loss, PLAN)(
        COMPLEX, SUBSETS, MASK
    ),
    "train": lambda: coding.train(KEY, loss, SCHEME, LAW, *GIVEN),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_every_entrance_refuses_complex_numbers_by_their_name(entrance):
    name = {"encode": "gradients", "decode": r"messages\[0\]"}.get(
        entrance, r"params\['w'\]"
    )
    refused = rf"^{name} is complex(64|128), and .*real and imaginary part"
    with pytest.raises(ValueError, match=refused):
        ENTRANCES[entrance]()
