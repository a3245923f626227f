"""Laws as they are typed: each name stands for its class, in the help and in JSON too."""

import dataclasses

import pytest

import bcgc_jax as bcgc
from bcgc_jax.cli.answers import describe_law
from bcgc_jax.cli.arguments import CycleTime


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("exponential:rate=1e-3", bcgc.Exponential(1e-3)),
        ("deterministic:value=2", bcgc.distributions.Deterministic(2.0)),
        ("shifted-exponential:rate=1e-3", bcgc.ShiftedExponential(1e-3)),
        ("two-speed:fast=1,slow=inf,probability=0.2", bcgc.TwoSpeed(1.0, float("inf"), 0.2)),
    ],
)
def test_a_law_is_read_and_told_by_its_parameters(text, law):
    read = CycleTime().convert(text, None, None)
    assert type(read) is type(law)
    assert repr(read) == repr(law)
    described = describe_law(read)
    assert described.pop("law") == text.partition(":")[0]
    assert list(described) == [field.name for field in dataclasses.fields(read)]
