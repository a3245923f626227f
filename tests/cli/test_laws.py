"""Laws as they are typed: each name stands for its class, in the help and in JSON too."""

import dataclasses
import importlib.resources
import json

import click
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cli.arguments import CycleTime, law_help
from bcgc_jax.cli.law_output import describe_law
from bcgc_jax.cli.names import LAWS


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("exponential:rate=1e-3", bcgc.Exponential(1e-3)),
        ("deterministic:value=2", bcgc.Deterministic(2.0)),
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


def test_a_parameter_that_a_law_has_not_is_refused_with_those_that_it_has():
    with pytest.raises(click.BadParameter, match="expected deterministic:value="):
        CycleTime().convert("deterministic:time=2", None, None)
    with pytest.raises(click.BadParameter, match=r"rate must be finite and > 0, got -1"):
        CycleTime().convert("exponential:rate=-1", None, None)


def test_help_and_schema_name_every_law():
    schema = json.loads((importlib.resources.files("bcgc_jax.cli") / "output.schema.json").read_text())
    assert json.dumps(list(LAWS)) in json.dumps(schema)
    assert [text.partition(":")[0] for text in law_help().split(", ")] == list(LAWS)
