"""`bcgc_jax/cli/output.schema.json`: what of an output is not as it says, and how it is
written.

`python -m tests.cli.schema` writes the rows of all commands into it, from their
columns.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, validators

import bcgc_jax.cli
from bcgc_jax.cli import columns
from bcgc_jax.cli.columns import Column
from bcgc_jax.sweeps import NUMBERS

FILE = Path(bcgc_jax.cli.__file__).with_name("output.schema.json")
SCHEMA = json.loads(FILE.read_text("utf-8"))
# The columns of rows, by the place of their description in the file.
ROWS = {
    ("solve", "properties", "solutions", "items"): columns.SOLUTION,
    ("sweep", "items"): columns.sweep_columns(NUMBERS),
    ("sweep_summary", "properties", "methods", "items"): columns.SUMMARY,
    ("fit", "properties", "fits", "items"): columns.FITS,
    ("fit", "properties", "plans", "items"): columns.PLANS,
    ("remedy",): columns.ADVICE,
}
# The standard takes 1.0 for an integer; nobody should have to read it as one.
_TYPES = Draft202012Validator.TYPE_CHECKER.redefine(
    "integer", lambda _, x: type(x) is int
)
_Validator = validators.extend(Draft202012Validator, type_checker=_TYPES)


def strict_json(text: str) -> Any:
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def problems(name: str, value: Any) -> list[str]:
    """What is wrong with `value` as the output `name`."""
    schema = {"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{name}"}
    return [
        f"{error.json_path}: {error.message}"
        for error in _Validator(schema).iter_errors(value)
    ]


def with_rows(schema: Any) -> Any:
    """The schema with the rows as their columns are; all else stays."""
    schema = json.loads(json.dumps(schema))
    for place, of_row in ROWS.items():
        node = schema["$defs"]
        for name in place:
            node = node[name]
        required = [
            column.name
            for column in of_row
            if column.required and column.condition is None
        ]
        node |= {"properties": properties(of_row), "required": required}
    schema["$defs"]["status"]["enum"] = list(columns.STATUSES)
    return schema


def properties(of_row: Sequence[Column]) -> dict[str, Any]:
    said = {
        column.name: {"unit": column.unit, "description": column.about}
        for column in of_row
    }
    return {
        column.name: column.kind
        | {name: text for name, text in said[column.name].items() if text}
        for column in of_row
    }


def written(value: Any, name: str = "", indent: str = "") -> str:
    """As JSON, with a line for each property, however long that is."""
    line = json.dumps(value, ensure_ascii=False)
    nested = name in ("properties", "$defs") or '"properties"' in line
    if not nested or len(line) <= 100:
        return line
    inner = indent + "  "
    if isinstance(value, list):
        lines = [f"{inner}{written(part, '', inner)}" for part in value]
        return "[\n" + ",\n".join(lines) + f"\n{indent}]"
    lines = [
        f'{inner}"{key}": {written(part, key, inner)}' for key, part in value.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


if __name__ == "__main__":
    FILE.write_text(written(with_rows(SCHEMA)) + "\n", "utf-8")
