"""Units of times, and times in another unit than seconds."""

import io
from fractions import Fraction

import numpy as np
import pytest

from bcgc_jax.traces.trace import load_trace
from bcgc_jax.traces.units import unusual_in_words


def _read(text, **options):
    return load_trace(io.BytesIO(text.encode()), **options)


@pytest.mark.parametrize(("unit", "of"), [("s", 0), ("ms", 3), ("us", 6), ("ns", 9)])
def test_times_of_a_unit_are_read_as_seconds(unit, of):
    text = "step,worker,chunk,seconds,forward_seconds\n1,a,0,250,50\n1,a,1,500,60\n"
    trace = _read(text, unit=unit)
    share = float(Fraction(1, 10**of))
    parts = trace.microbatches
    assert parts is not None
    assert trace.seconds.tolist() == pytest.approx([750 * share], rel=1e-15)
    assert parts.seconds[0, 0].tolist() == pytest.approx(
        [250 * share, 500 * share], rel=1e-15
    )
    assert parts.forward is not None
    assert parts.forward[0, 0].tolist() == pytest.approx(
        [50 * share, 60 * share], rel=1e-15
    )
    wide = _read("step,w0,w1\n1,250,500\n", unit=unit)
    assert wide.seconds.tolist() == pytest.approx([250 * share, 500 * share], rel=1e-15)


def test_an_unknown_unit_is_refused():
    with pytest.raises(
        ValueError, match="unit must be one of s, ms, us, ns, got 'min'"
    ):
        _read("step,w0,w1\n1,250,500\n", unit="min")


def test_only_steps_of_hours_or_of_less_than_a_millisecond_are_remarked():
    step = np.array([0, 0, 1, 1, 2, 2])

    def said(*slowest):
        seconds = np.array([[0.1 * time, time] for time in slowest]).ravel()
        return " ".join(unusual_in_words(step, seconds))

    assert (
        said(1.0, 1.0, 1e6)
        == said(3600.0, 3600.0, 1.0)
        == said(0.001, 0.001, 1e-9)
        == ""
    )
    text = said(6.25e8, 6.25e8, 1e3)
    assert "taken for seconds. So a step takes 6.25e+08 s." in text
    assert text.endswith("give their unit: us (625 s), ns (0.625 s).")
    assert said(4000.0, 5000.0, 6000.0).endswith(
        "give their unit: ms (5 s), us (0.005 s)."
    )
    assert said(5e-4, 5e-4, 5e-4).endswith(
        " So a step takes 0.0005 s. Convert the times, if that is not so."
    )
