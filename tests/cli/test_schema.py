"""What `--format json` prints is what the schema says, field by field."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.cli.law_output import describe_law
from bcgc_jax.cli.names import LAWS
from bcgc_jax.cli.output import VERSION
from bcgc_jax.problem import Status
from tests.cli.schema import SCHEMA, problems, strict_json
from tests.cli.steps import TIMES


def test_every_kind_of_law_is_in_it():
    """Answers of the commands are looked at where they are asked for (the fixture `answer`)."""
    laws = [
        bcgc.ShiftedExponential(1e-3, 50.0),
        bcgc.TwoSpeed(1.0, np.inf, 0.2),
        bcgc.Empirical(TIMES.ravel()),
        bcgc.Rows(TIMES),
        bcgc.measured.smooth_empirical(TIMES),
        bcgc.measured.smooth_empirical(TIMES, pareto_tail=True),
    ]
    for law in laws:
        assert problems("law", strict_json(json.dumps(describe_law(law)))) == []
    assert describe_law(laws[1])["slow"] is None


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _parts(part)


def test_the_schema_names_what_there_is():
    laws = SCHEMA["$defs"]["law"]["anyOf"][0]["properties"]["law"]["enum"]
    assert laws == list(LAWS)
    assert SCHEMA["$defs"]["status"]["enum"] == [status.name.lower() for status in Status]
    for name in ("solve", "sweep_summary", "fit", "train"):
        assert SCHEMA["$defs"][name]["properties"]["version"] == {"const": VERSION}
    # Every number has its unit.
    for part in _parts(SCHEMA["$defs"]):
        for name, field in part.get("properties", {}).items():
            if isinstance(field, dict) and (
                field.get("type") in ("number", "integer") or field.get("$ref") == "#/$defs/number"
            ):
                assert "unit" in field, name


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.pop("version"), "solve: version is missing"),
        (lambda x: x.update(version=1), "solve.version: 1 is not 2"),
        (lambda x: x.update(more=1), "solve.more is not in the schema"),
        (lambda x: x["solutions"][0].update(status="fine"), "'fine' is none of"),
        (lambda x: x["solutions"][0].update(partition=[1.5]), "1.5 is no"),
        (lambda x: x["solutions"][0].update(seconds=None), "None is no"),
        (lambda x: x["solutions"][0].update(lower_bound="0"), "'0' is no"),
        (lambda x: x["problem"]["cycle_time"].update(law="cauchy"), "'cauchy' is none of"),
        (lambda x: x["problem"]["cycle_time"].update(rate="fast"), "'fast' is no"),
    ],
)
def test_the_validator_sees_what_is_wrong(spoil, message):
    row: dict[str, Any] = dict.fromkeys(
        ("expected_runtime", "runtime_error", "lower_bound", "relative_gap"), 0.5
    )
    row |= {
        "method": "time",
        "status": "converged",
        "kind": "exact",
        "partition": [3],
        "partition_runtime": None,
        "schedule": {"sizes": [2, 1], "tasks": [[0, 0], [0, 1]]},
        "stored_subsets": 1,
        "sent": 0.5,
        "round_trips": 2,
        "exact_gradient": True,
        "seconds": 1,
    }
    law = {"law": "shifted-exponential", "rate": 1.0, "shift": 0.0}
    numbers = dict.fromkeys(("num_workers", "num_coordinates", "num_samples", "cycles"), 1)
    good = {"version": 2, "problem": {"cycle_time": law, **numbers}, "limit": None, "solutions": [row]}
    assert problems("solve", good) == []
    bad = copy.deepcopy(good)
    spoil(bad)
    assert message in "; ".join(problems("solve", bad))
