"""What no machine holds, or nobody waits for, is refused before it starts."""

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cli.arguments import WORKERS
from bcgc_jax.cli.traces import check_size

EXPONENTIAL = bcgc.ShiftedExponential(1e-3, 50.0)
ATOMS = bcgc.Empirical(np.random.default_rng(0).gamma(2.0, 1.0, 500) + 0.5)


@pytest.mark.parametrize("size", [1e9, 10**15])
def test_python_refuses_what_no_machine_holds(size):
    for given in ({"num_workers": size}, {"num_workers": 3, "max_workers": int(size)}):
        words = r"e\+\d\d workers are more than 131,072: .* arrays of N² numbers"
        with pytest.raises(ValueError, match=words):
            bcgc.Problem(EXPONENTIAL, num_coordinates=60, **given)


def test_as_many_workers_as_there_may_be_can_be_typed():
    assert WORKERS.read("131072") == 2**17


def test_what_takes_a_day_is_refused():
    for law, workers in ((EXPONENTIAL, 100_000), (ATOMS, 500)):
        check_size(bcgc.Problem(law, workers, 1_000_000))
    with pytest.raises(ValueError, match="more than a day: take fewer --workers"):
        check_size(bcgc.Problem(ATOMS, 10_000, 1_000_000))
