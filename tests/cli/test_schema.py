"""What `--format json` prints is what the schema says, field by field."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

import bcgc_jax as bcgc
from bcgc_jax.cli import output
from bcgc_jax.cli.arguments import LAWS, law_usage
from bcgc_jax.cli.columns import (
    SOLUTION,
    Column,
    flat,
    table_of,
    values,
)
from bcgc_jax.cli.describe import describe_law
from bcgc_jax.cli.output import VERSION
from bcgc_jax.cli.solve_rows import Schedule
from bcgc_jax.problem import Status
from bcgc_jax.sweeps import ANSWERED
from tests.cli.rows import row
from tests.cli.schema import (
    SCHEMA,
    problems,
    strict_json,
)
from tests.cli.steps import TIMES


def test_every_kind_of_law_is_in_it():
    """The fixture `answer` looks at the answers of commands."""
    laws: list[Any] = [
        bcgc.ShiftedExponential(1e-3, 50.0),
        bcgc.TwoSpeed(1.0, np.inf, 0.2),
        bcgc.Empirical(TIMES.ravel()),
        bcgc.EmpiricalRows(TIMES),
        bcgc.traces.smooth_empirical(TIMES),
        bcgc.traces.smooth_empirical(TIMES, pareto_tail=True),
    ]
    for law in laws:
        assert (
            problems("distribution", strict_json(json.dumps(describe_law(law)))) == []
        )
    assert describe_law(laws[1])["slow"] is None


def test_every_column_of_a_sweep_is_in_it():
    assert {*ANSWERED} <= SCHEMA["$defs"]["sweep"]["items"]["properties"].keys()


def test_a_column_is_in_json_csv_and_table(capsys):
    steps = Column("num_steps", head="steps", form="d", of=lambda row: 7)
    columns = (*SOLUTION, steps)
    rows = [row("time", 8.0, [3, 0])]
    assert (
        values(columns, rows[0])["num_steps"]
        == flat(columns, rows[0])["num_steps"]
        == 7
    )
    output.print_rows(rows, table_of(columns, rows, "method", "num_steps"))
    *heads, line = capsys.readouterr().out.splitlines()
    assert line.split()[:2] == ["time", "7"]
    assert "steps" in " ".join(heads)


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for part in (
        schema.values()
        if isinstance(schema, dict)
        else schema
        if isinstance(schema, list)
        else ()
    ):
        yield from _parts(part)


def test_the_schema_names_what_there_is():
    Draft202012Validator.check_schema(SCHEMA)
    laws = SCHEMA["$defs"]["distribution"]["anyOf"][0]["properties"]["distribution"][
        "enum"
    ]
    assert laws == [law_usage(law).partition(":")[0] for law in LAWS] == list(LAWS)
    assert SCHEMA["$defs"]["status"]["enum"] == [
        status.name.lower() for status in Status
    ]
    for name in ("solve", "sweep_summary", "fit"):
        assert SCHEMA["$defs"][name]["properties"]["version"] == {"const": VERSION}
    # Every number has its unit.
    numbers = {"number", "integer", "#/$defs/number"}
    for part in _parts(SCHEMA["$defs"]):
        for name, field in part.get("properties", {}).items():
            if (
                isinstance(field, dict)
                and {str(field.get("type")), field.get("$ref")} & numbers
            ):
                assert "unit" in field, name


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x.pop("version"),
        lambda x: x.update(version=1),
        lambda x: x.update(more=1),
        lambda x: x["solutions"][0].update(partition=[1.0]),
        lambda x: x["problem"]["cycle_time"].update(rate="fast"),
    ],
)
def test_it_refuses_what_is_wrong(spoil):
    numbers = dict.fromkeys(
        ("num_workers", "num_coordinates", "num_samples", "cycles"), 1
    )
    law = describe_law(bcgc.ShiftedExponential(1.0, 0.0))
    schedule = Schedule([2, 1], tasks=[[0, 0], [0, 1]])
    answer = {
        "version": VERSION,
        "problem": {"cycle_time": law, **numbers},
        "limit": None,
    }
    answer |= {
        "solutions": [values(SOLUTION, row("time", 0.5, [3], schedule=schedule))]
    }
    assert problems("solve", answer) == []
    spoil(answer)
    assert len(problems("solve", answer)) == 1
