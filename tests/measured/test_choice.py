"""Which law stands for measured times."""

from typing import Any

import numpy as np
import pytest

from bcgc_jax.distributions import Empirical, HazardSpline
from bcgc_jax.measured import law_of, smooth_empirical
from bcgc_jax.measured.choice import smooth_or_atoms

TIMES = np.random.default_rng(0).gamma(2.5, 0.6, (60, 8)) + 0.8


def test_few_times_of_few_workers_are_atoms_and_others_a_smooth_law():
    few: Any = law_of(TIMES, 8)
    assert isinstance(few, Empirical)
    assert np.array_equal(few.times, np.sort(TIMES.ravel()).astype(np.asarray(few.times).dtype))
    t = np.linspace(0.5, 6, 30)
    for law in (law_of(TIMES, 50), smooth_or_atoms(TIMES, 8), law_of(TIMES, 2, kind="smooth")):
        assert np.array_equal(law.survival(t), smooth_empirical(TIMES).survival(t))
    heavy = law_of(TIMES, 2, kind="pareto-tail")
    assert np.array_equal(heavy.survival(t), smooth_empirical(TIMES, pareto_tail=True).survival(t))


def test_censored_times_are_smooth_and_times_of_a_coarse_clock_are_atoms():
    cut = TIMES > 3
    law = law_of(TIMES, 2, cut)
    assert isinstance(law, HazardSpline)
    assert float(law.mean()) > float(smooth_empirical(TIMES).mean())
    assert isinstance(law_of(np.round(TIMES), 200), Empirical)
    with pytest.raises(ValueError, match="8 different ones"):
        law_of(np.round(TIMES), 2, kind="smooth")


@pytest.mark.parametrize(
    ("workers", "asked", "message"),
    [
        (2, {"kind": "atoms", "censored": TIMES > 3}, "of 480 times are censored"),
        (1000, {"kind": "atoms"}, "480 measured times are too many atoms for 1000 workers"),
        (2, {"kind": "tail"}, "kind must be one of auto, atoms"),
    ],
)
def test_what_there_is_no_law_of_is_refused(workers, asked, message):
    with pytest.raises(ValueError, match=message):
        law_of(TIMES, workers, **asked)
